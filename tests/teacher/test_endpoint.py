"One request: what endpoints reject, what errors mean, and that no key or password gets out."
import json, logging, traceback

import pytest
from hypothesis import given, settings, strategies as st

from llm_distill.core.core import TeacherError, read_jsonl
from llm_distill.teacher.cache import cache_export
from llm_distill.teacher.endpoint import (
    Endpoint, RequestError, Usage, classify_error, read_reply, redact, run_in_background)
from llm_distill.teacher.teacher import Teacher
from server import SECRET, Server, connect, error, prompts


@pytest.mark.parametrize('refuse, sent', [
    (dict(max_tokens="Unsupported parameter: 'max_tokens' is not supported with this model. "
                     "Use 'max_completion_tokens' instead."), 'max_completion_tokens'),
    (dict(temperature="Unsupported value: 'temperature' does not support 0 with this model."), None),
    (dict(stop="Unsupported parameter: 'stop' is not supported with this model."), None)])
def test_parameters_that_an_endpoint_does_not_take(refuse, sent):
    with Server(echo=True) as server:
        server.refuse = {f'"{k}"': v for k, v in refuse.items()}
        replies = connect(server).ask(prompts(30), 'labeling', stop=['00003'])
        assert len(server.log) == 31 and server.outcomes() == {'400': 1, 'ok': 30}
        name, = refuse
        assert all(name not in o['body'] and (not sent or o['body'][sent] == 512) for o in server.log[1:])
        if name == 'stop': assert replies[3].text == 'echo of prompt '


def test_json_schema_and_its_fall_back():
    schema = dict(type='object', properties=dict(a=dict(type='string')))
    for refused, form in ((), 'json_schema'), (['json_schema'], 'json_object'), (['json_schema', 'json_object'], None):
        with Server(echo=True) as server:
            server.refuse = {f'"{k}"': f'response_format {k} is not supported' for k in refused}
            reply, = connect(server).ask(['x'], 'synthesis', schema=schema)
            last = server.log[-1]
            assert reply.kind == 'ok' and last['body'].get('response_format', {}).get('type') == form
            assert ('matches this schema' in last['prompt']) == (form != 'json_schema')


def test_an_endpoint_that_rejects_whatever_is_sent_is_not_asked_for_ever():
    with Server(echo=True) as server:
        server.refuse = {'"model"': "Unknown parameter: 'temperature'"} # even if it is left out
        with pytest.raises(TeacherError, match='400.*temperature'): connect(server).ask(prompts(1), 'labeling')
        assert len(server.log) <= 9


@pytest.mark.parametrize('status, headers, kind', [
    (429, {}, 'rate_limited'), (503, {}, 'transient'), (503, {'retry-after': '1'}, 'rate_limited'),
    (500, {'retry-after': '1'}, 'transient'), (502, {}, 'transient'), (529, {}, 'transient'), (408, {}, 'transient'),
    (400, {}, 'bad_request'), (413, {}, 'bad_request'), (422, {}, 'bad_request'), (401, {}, 'fatal'),
    (404, {}, 'fatal')])
def test_kinds_of_statuses(status, headers, kind):
    assert classify_error(status, None, bool(headers)) == kind


@pytest.mark.parametrize('code, status, kind', [
    ('insufficient_quota', 429, 'fatal'), ('context_length_exceeded', 400, 'bad_request'),
    ('string_above_max_length', 400, 'bad_request'), ('content_filter', 400, 'filtered'),
    ('content_policy_violation', 403, 'filtered'), ('invalid_api_key', 401, 'fatal'),
    ('content_filter', 500, 'transient')])
def test_kinds_of_error_codes(code, status, kind):
    assert classify_error(status, code) == kind


def test_a_text_that_was_broken_off_is_no_answer():
    body = dict(choices=[dict(index=0, message=dict(content='Find the'), finish_reason='error')])
    assert read_reply(body)[1:] == ('truncated', "incomplete; finish_reason is 'error'")


names = st.sampled_from(['choices', 'message', 'content', 'finish_reason', 'refusal', 'error'])
anything = st.recursive(st.none() | st.booleans() | st.integers() | st.text(max_size=5),
                        lambda o: st.lists(o, max_size=3) | st.dictionaries(names, o, max_size=4), max_leaves=12)


@settings(max_examples=300, deadline=None, derandomize=True)
@given(anything | st.fixed_dictionaries(dict(message=anything)).map(lambda choice: dict(choices=[choice])))
def test_any_json_is_a_reply_or_a_request_error(body):
    try: text, kind, reason = read_reply(body)
    except RequestError as e: assert e.kind == 'transient' and '\n' not in str(e)
    else: assert kind in ('ok', 'truncated', 'empty', 'filtered') and (kind == 'ok') == (reason == '')


def test_half_a_surrogate_pair_is_kept_as_a_question_mark(tmp_path):
    message = dict(role='assistant', content='so \ud83d')
    with Server(echo=True) as server:
        answer = server.answer
        server.answer = lambda body, headers: (200, answer(body, headers)[1] | dict(
            choices=[dict(index=0, finish_reason='stop', message=message)]))
        for _ in range(2):
            teacher = Teacher('m', server.url, cache=tmp_path/'c', progress=False)
            assert teacher.ask(['x'], 'labeling')[0].text == 'so ?'
        assert len(server.log) == 1


def test_a_prompt_that_the_endpoint_refuses_to_read_is_kept_as_filtered(tmp_path):
    with Server(echo=True) as server:
        refusal = json.loads(error('The prompt was filtered.', code='content_filter'))
        server.answer = lambda body, headers: (400, refusal)
        for _ in range(2):
            teacher = Teacher('m', server.url, cache=tmp_path/'c', progress=False)
            reply, = teacher.ask(['something bad'], 'labeling')
            assert (reply.kind, reply.text) == ('filtered', None) and 'was filtered' in reply.reason
        assert len(server.log) == 1


def test_usage_adds_up():
    assert Usage(1, 2, 3, 4, 5, .5) + Usage(1, 1, 1, 1, 1, 1) == Usage(2, 3, 4, 5, 6, 1.5)


# Keys

def test_no_key_anywhere(tmp_path, caplog, capfd):
    caplog.set_level(logging.DEBUG)
    cache, record, errors = tmp_path/'teacher.sqlite', tmp_path/'record.jsonl', []
    with Server(echo=True, key='another', faults={'500': .1}) as server:
        for key in SECRET, 'sk-proj-abcdefghijklmnop': # the server's message repeats the key
            with pytest.raises(TeacherError, match='401') as e:
                connect(server, api_key=key, cache=cache).ask(prompts(3), 'labeling')
            errors.append(''.join(traceback.format_exception(e.value)))
        server.key = SECRET
        t = connect(server, cache=cache, record=record, progress=True)
        t.ask(prompts(30), 'labeling')
        shown = [repr(t), repr(t.endpoint), t.name, json.dumps(t.describe()), str(t.usage), *errors,
                 *capfd.readouterr(), caplog.text]
        cache_export(cache, tmp_path/'export.jsonl')
        t.close()
        assert len(read_jsonl(record)) == 30
        for secret in SECRET, 'sk-proj-abcdefghijklmnop':
            assert not any(secret in o for o in shown)
            for path in tmp_path.iterdir(): assert secret.encode() not in path.read_bytes(), path


def test_a_password_in_the_address_is_not_repeated():
    with Server(plan=['401']) as server:
        teacher = Teacher('m', server.url.replace('//', '//me:hunter2@'), progress=False)
        with pytest.raises(TeacherError) as e: teacher.ask(['x'], 'labeling')
    assert 'hunter2' not in str(e.value) + repr(teacher) + repr(teacher.endpoint)


@settings(max_examples=200, deadline=None, derandomize=True)
@given(st.text(max_size=700), st.integers(0, 700))
def test_a_key_is_never_left_in_a_redacted_text(text, at):
    shown = redact(text[:at] + SECRET + text[at:], SECRET)
    assert SECRET[:8] not in shown and '\n' not in shown and len(shown) <= 600


def test_an_app_has_no_key_and_its_own_name():
    async def app(scope, receive, send): raise NotImplementedError
    app.name = 'recorded:1234'
    assert Endpoint('http://recorded/v1', app=app).name == 'recorded:1234'


def test_an_endpoint_that_is_collected_in_the_loops_thread_does_not_hold_it():
    import time
    with Server(echo=True) as server:
        t = connect(server)
        t.ask(['x'], 'labeling')

        async def close():
            started_at = time.monotonic()
            t.endpoint.close()
            return time.monotonic() - started_at
        assert run_in_background(close()) < .9 # it would wait for itself for a second
        assert t.ask(['y'], 'labeling')[0].kind == 'ok'
