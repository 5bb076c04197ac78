"The train/test split, with and without users and times."
from hypothesis import given, strategies as st

from llm_distill.data.splits import assign_splits, group_of, group_rejects, order_rows
from odd_texts import anything


def split_one_by_one(rows_by_prompt, n, n_test):
    "Go through the questions in order and put each usable pair where one is missing."
    splits = dict(train=[], test=[])
    for name, labeled in rows_by_prompt.items():
        test = splits.setdefault('test' if name == 'main' else 'test_ood', [])
        for _, pair in labeled:
            if len(test) < n_test: target = test
            elif name == 'main' and len(splits['train']) < n: target = splits['train']
            else: break
            if pair: target.append(pair)
    return splits


labeled_rows = st.lists(st.one_of(st.none(), st.integers(1, 9).map(lambda i: dict(answer=i))), max_size=12)


@anything
@given(labeled_rows, st.one_of(st.none(), labeled_rows), st.integers(1, 5), st.integers(1, 5))
def test_the_first_usable_pairs_are_for_testing(main, ood, n, n_test):
    pairs = dict(main=main) if ood is None else dict(main=main, ood=ood)
    rows_by_prompt = {name: [(dict(question=i), pair) for i, pair in enumerate(o)] for name, o in pairs.items()}
    splits = assign_splits(rows_by_prompt, n, n_test)
    assert splits == split_one_by_one(rows_by_prompt, n, n_test)
    assert list(splits) == ['train', 'test'] + ([] if ood is None else ['test_ood'])
    assert assign_splits(rows_by_prompt, n + 3, n_test)['test'] == splits['test']


group_names = st.one_of(st.none(), st.sampled_from('abcd'))
logged = st.lists(st.tuples(group_names, st.one_of(st.none(), st.integers(1_000_000_000, 1_000_000_009))), max_size=14)


def to_rows(log):
    keys = 'group', 'time'
    rows = [dict(question=str(i), answer='a') | dict(zip(keys, values)) for i, values in enumerate(log)]
    return [{k: v for k, v in row.items() if v is not None} for row in rows]


def split(rows, n, n_test):
    groups = {row['question']: row['group'] for row in rows if 'group' in row}
    labeled = dict(main=[(row, row) for row in rows])
    splits = assign_splits(labeled, n, n_test, groups)
    return splits, group_rejects(labeled, splits, groups)


@anything
@given(logged, st.integers(1, 9), st.integers(1, 5))
def test_no_group_is_in_both_training_and_test_set(log, n, n_test):
    rows = order_rows(to_rows(log))
    splits, rejects = split(rows, n, n_test)
    in_test, in_train = ({row['group'] for row in splits[name] if 'group' in row} for name in ('test', 'train'))
    assert not in_test & in_train and splits['test'] == rows[:n_test]
    lost = {r['question'] for r in rejects}
    usable = [row for row in rows[n_test:] if row['question'] not in lost]
    assert splits['train'] == usable[:n] and all(r['filter'] == 'same_group' for r in rejects)
    assert {row.get('group') for row in rows if row['question'] in lost} <= in_test


@anything
@given(logged)
def test_the_newest_groups_come_first_and_stay_together(log):
    rows = to_rows(log)
    ordered = order_rows(rows)
    assert sorted(ordered, key=lambda r: int(r['question'])) == rows and order_rows(ordered) == ordered
    groups = [row.get('group', row['question']) for row in ordered]
    assert len([g for i, g in enumerate(groups) if i == 0 or groups[i - 1] != g]) == len(set(groups))
    newest = {}
    for group, row in zip(groups, ordered): newest[group] = max(newest.get(group, 0), row.get('time', 0))
    assert list(newest.values()) == sorted(newest.values(), reverse=True)


def test_rows_without_group_and_time_keep_their_order():
    rows = [dict(question=q) for q in 'cab']
    assert order_rows(rows) == rows


def test_a_missing_group_of_a_table_is_none():
    assert [group_of(dict(group=g)) for g in (float('nan'), None, '', 0, 'ada')] == [None, None, None, '0', 'ada']
