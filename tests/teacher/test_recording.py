"Recordings: replayed through the wire format, in both formats and over HTTP."
import json

import pytest

from llm_distill.core.core import TeacherError, read_jsonl, recordings, write_jsonl
from llm_distill.core.prompt_files import load_prompt
from llm_distill.teacher.cache import cache_export
from llm_distill.teacher.endpoint import Reply, Usage, read_reply
from llm_distill.teacher.recording import RecordingApp, RecordingWriter
from llm_distill.teacher.teacher import Teacher, recorded_teacher
from server import Server, connect, echoes, prompts


def test_the_server_answers_from_the_recordings():
    prompt = load_prompt(recordings/'apartments.toml')
    rows = read_jsonl(recordings/'apartments.jsonl')
    with Server() as server:
        over_http, inside = connect(server), recorded_teacher()
        for stage, sample, i in ('labeling', 0, 0), ('evaluation', 1, 1):
            chat = [prompt.render(rows[5]['question'])]
            a, b = (t.ask(chat, stage, sample=sample)[0].text for t in (over_http, inside))
            assert a == b == rows[5]['answers'][i]
        reply, = connect(server).ask([f'{prompt.question}\nWrite questions 3 to 5.'], 'synthesis')
        assert reply.text == json.dumps(dict(questions=[o['question'] for o in rows[2:5]]), ensure_ascii=False)
        with pytest.raises(TeacherError, match='404.*Who are you'):
            connect(server).ask(['Q: Who are you?\nA:'], 'labeling')


def test_a_recording_is_replayed_whatever_the_model_is_called(tmp_path):
    record = tmp_path/'sub'/'mine.jsonl'
    schema = dict(type='object')
    with Server(echo=True, plan=['ok', 'truncated', 'empty', 'filter']) as server:
        live = connect(server, record=record, concurrency=1).ask(prompts(8), 'labeling', stop=['<END>'], schema=schema)
        second = connect(server, record=record).ask(prompts(8), 'labeling', stop=['<END>'], schema=schema, sample=1)
    replay = Teacher(f'recorded:{record}', progress=False)
    again = replay.ask(prompts(8), 'evaluation', stop='<END>', schema=schema)
    assert [(o.kind, o.text, o.partial_text) for o in again] == [(o.kind, o.text, o.partial_text) for o in live]
    assert [o.kind for o in live[:5]] == ['ok', 'truncated', 'empty', 'filtered', 'ok']
    assert [o.text for o in replay.ask(prompts(8), 'labeling', stop=['<END>'], schema=schema, sample=1)] == [
        o.text for o in second] == echoes(8)
    assert replay.usage['evaluation'].prompt_tokens == sum(o.usage.prompt_tokens for o in live)
    with pytest.raises(TeacherError, match='no recorded reply'): replay.ask(prompts(1), 'labeling', max_tokens=9)


def test_each_request_is_recorded_once(tmp_path):
    with Server(echo=True) as server:
        for n in 5, 8: connect(server, record=tmp_path/'r.jsonl').ask(prompts(n)*2, 'labeling')
    assert [o['text'] for o in read_jsonl(tmp_path/'r.jsonl')] == echoes(8)


def test_failed_requests_are_not_recorded(tmp_path):
    with Server(echo=True, plan=['ok', '400', 'ok']) as server:
        connect(server, record=tmp_path/'r.jsonl', concurrency=1).ask(prompts(3), 'labeling')
    assert [o['text'] for o in read_jsonl(tmp_path/'r.jsonl')] == ['echo of prompt 00000', 'echo of prompt 00002']


def test_recordings_of_the_older_version_are_read(tmp_path):
    message = dict(role='user', content='halves')
    request = dict(model='m', messages=[message], temperature=0., max_tokens=512)
    write_jsonl(tmp_path/'old.jsonl', [
        dict(task='Why?', completions=['Because.', 'For a reason.']),
        dict(request=request, sample=0, stage='labeling', kind='cut', reason='cut at the token limit', text='half'),
        dict(comment='neither')])
    teacher = Teacher(f'recorded:{tmp_path}/old.jsonl', progress=False)
    assert teacher.ask(['Q: Why?\nA:'], 'labeling')[0].text == 'Because.'
    assert teacher.ask(['Q: Why?\nA:'], 'evaluation')[0].text == 'For a reason.'
    half, = teacher.ask(['halves'], 'labeling')
    assert (half.kind, half.partial_text) == ('truncated', 'half')


def test_a_folder_of_recordings_has_one_name_that_depends_on_their_content(tmp_path):
    write_jsonl(tmp_path/'a.jsonl', [dict(question='Why?', answers=['Because.'])])
    first = RecordingApp(tmp_path)
    assert first.name == RecordingApp(tmp_path/'a.jsonl').name and first.name.startswith('recorded:')
    write_jsonl(tmp_path/'b.jsonl', [dict(question='How?', answers=['So.'])])
    assert RecordingApp(tmp_path).name != first.name and set(RecordingApp(tmp_path).answers) == {'Why?', 'How?'}


def test_an_answer_ends_at_the_stop_text(tmp_path):
    write_jsonl(tmp_path/'a.jsonl', [dict(question='Why?', answers=['Because.<END> And more'])])
    body = dict(model='m', messages=[dict(role='user', content='Q: Why?\nA:')], stop='<END>')
    assert read_reply(RecordingApp(tmp_path).answer(body, {})[1]) == ('Because.', 'ok', '')


def test_an_exported_cache_is_a_recording(tmp_path):
    with Server(echo=True, faults={'truncated': .2}) as server:
        replies = connect(server, cache=tmp_path/'c').ask(prompts(30), 'labeling')
    assert cache_export(tmp_path/'c', tmp_path/'r.jsonl') == 30
    again = Teacher(f'recorded:{tmp_path}/r.jsonl', progress=False).ask(prompts(30), 'labeling')
    assert [(o.kind, o.text, o.partial_text) for o in again] == [(o.kind, o.text, o.partial_text) for o in replies]


def test_a_writer_goes_on_after_a_row_of_another_kind(tmp_path):
    write_jsonl(tmp_path/'r.jsonl', [dict(question='Why?', answers=['Because.'])])
    request = dict(model='m', messages=[dict(role='user', content='x')])
    RecordingWriter(tmp_path/'r.jsonl').add(request, 0, 'labeling', Reply('y', 'ok', '', 'k', Usage(1)))
    assert len(read_jsonl(tmp_path/'r.jsonl')) == 2


def test_a_recorded_teacher_takes_the_options_of_a_teacher(tmp_path):
    teacher = recorded_teacher(cache=tmp_path/'c', concurrency=3, max_retries=1)
    assert (teacher.model, teacher.concurrency, teacher.progress) == ('recorded', 3, False)
    assert teacher.name == f'recorded at {RecordingApp().name}'
    with pytest.raises(TeacherError, match='no recording at /nowhere'): recorded_teacher('/nowhere')
