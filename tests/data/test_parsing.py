"Questions are found in replies of all forms, and only whole ones in truncated replies."
import json

from hypothesis import example, given, settings, strategies as st

from llm_distill.core.prompt import trim
from llm_distill.data.parsing import parse_questions, parse_variables

words = st.text(st.characters(codec='utf-8'), min_size=1).filter(str.strip)
anything = settings(max_examples=150, deadline=None, derandomize=True)
question_lists = st.lists(st.from_regex(r'[A-Z][a-z]{2,8}( [a-z0-9éß]{1,9}){2,9}\?', fullmatch=True),
                          min_size=1, max_size=8, unique=True)

forms = dict(
    object=lambda qs: json.dumps(dict(questions=qs)),
    array=lambda qs: json.dumps(qs, ensure_ascii=False, indent=2),
    rows=lambda qs: json.dumps([dict(id=i, question=q) for i, q in enumerate(qs)]),
    fenced=lambda qs: f'Sure! Here they are:\n```json\n{json.dumps(qs)}\n```\nLet me know if you need more.',
    numbered=lambda qs: '\n'.join(['Questions:\n', *(f'{i}. {q}' for i, q in enumerate(qs, 1)), '\nHope this helps!']),
    bulleted=lambda qs: '\n'.join(f'- **{q}**' for q in qs),
    turns=lambda qs: '\n'.join(f'Q: {q}' for q in qs),
    lines=lambda qs: '\n\n'.join(qs))


@anything
@given(question_lists, st.sampled_from(sorted(forms)))
def test_questions_are_found_in_every_form(questions, form): assert parse_questions(forms[form](questions)) == questions


@anything
@given(question_lists, st.sampled_from(sorted(forms)), st.data())
def test_only_whole_questions_of_a_truncated_reply_are_kept(questions, form, data):
    whole = forms[form](questions)
    part = whole[:data.draw(st.integers(0, len(whole)))]
    kept = [q for q in parse_questions(part, truncated=True) if q in questions]
    assert kept == questions[:len(kept)] # in order, without gaps
    if form in ('numbered', 'bulleted', 'turns', 'lines'): n_complete = sum(q in part for q in questions)
    else: n_complete = sum(json.dumps(q, ensure_ascii=form != 'array') in part for q in questions)
    assert len(kept) >= n_complete - 1 # nothing may show that the last one is complete


@anything
@given(st.one_of(st.text(), st.text('[]{}"\\,: \n-1.Qq*`u'),
                 st.binary().map(lambda b: b.decode('utf-8', 'surrogateescape'))), st.booleans())
@example('[' * 3_000, False)
@example('{"a":' * 1_000 + '1', True)
@example('["\\ud800", "fine one"]', False)
@example('[' + '9' * 10_000 + ']', False)
def test_any_reply_gives_a_list_of_clean_texts(text, truncated):
    questions = parse_questions(text, truncated)
    assert isinstance(questions, list) and all(q and q == trim(q) for q in questions)
    json.dumps(questions).encode()
    '\n'.join(questions).encode('utf-8')


@anything
@given(st.lists(st.tuples(words, words).map('x\n'.join), min_size=1))
def test_questions_of_several_lines_stay_as_they_are(texts):
    expected = [trim(t.removeprefix('Q:')) for t in texts]
    assert parse_questions(json.dumps(dict(questions=texts))) == [t for t in expected if t]


def test_variables_are_read_from_complete_objects():
    text = 'Sure! {"questions": [{"a": "1\\n2", "b": 3}, {"a": "x"}, {"a": "5", "b"'
    assert parse_variables(text, ['a', 'b']) == [dict(a='1\n2', b=3)]
