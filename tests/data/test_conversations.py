"Questions and answers in recorded chats."
import pytest

from llm_distill.core.core import DistillError
from llm_distill.data.conversations import (
    Conversation, UnusableRow, find_messages, read_conversation, read_message, read_reply)

user, assistant = dict(role='user', content='a'), dict(role='assistant', content='b')


def test_system_and_earlier_turns_are_kept_apart():
    system = dict(role='system', content=' Do it.\n')
    chat = read_conversation([system, user, assistant, dict(user, content='c'), dict(assistant, content='d')], 'line 1')
    assert chat == Conversation('c', 'd', 'Do it.', (('a', 'b'),))


@pytest.mark.parametrize('role', ['developer', 'system'])
def test_a_system_message_has_two_names(role): assert read_message(dict(role=role, content='x'), '') == ('system', 'x')


def test_a_system_message_in_the_middle_is_not_dropped():
    with pytest.raises(UnusableRow, match='out of turn'):
        read_conversation([user, dict(role='system', content='x'), assistant], '')


@pytest.mark.parametrize('reply',
                         ['b', assistant, [assistant], dict(content='b'), dict(choices=[dict(message=assistant)]),
                                   [dict(message=assistant)], [dict(type='reasoning'), assistant]])
def test_a_reply_in_every_form(reply): assert read_reply(reply, '') == 'b'


@pytest.mark.parametrize('reply, reason', [
    (None, 'no answer'), ([], 'no answer'), (3, 'no text'), (dict(tags=[]), 'no text'),
    ([assistant, assistant], 'several'),
    (dict(choices=[dict(message=dict(role='assistant', tool_calls=[1]))]), 'tool'),
    (dict(choices=[dict(message=assistant, finish_reason='length')]), 'truncated'),
    (dict(choices=[dict(message=assistant, finish_reason='content_filter')]), 'content filter')])
def test_a_reply_that_is_not_one_text(reply, reason):
    with pytest.raises(UnusableRow, match=reason): read_reply(reply, '')


def test_a_malformed_message_is_an_error_with_its_place():
    for message in 3, {}, dict(role='robot', content='x'), dict(role='user', content=3):
        with pytest.raises(DistillError, match='line 7'): read_message(message, 'line 7')


def test_json_that_is_no_chat_is_a_text():
    for text in '{"city": "Rome"}', '[1]', '[{"role": "admin", "content": "x"}]', '{', 'text', '[]':
        assert find_messages(text) is None
