"Finished runs of which only the scores exist."
from llm_distill.core.core import write_json, write_jsonl


def finished_run(
    path,
    values,
    student='small',
    random_seed=0,
    ceiling=0.9,
    base=0.2,
    parameters=None,
    recipe={},
    metric='step_f1',
    test_set='test',
):
    "A run with scores of the student, one per question; those of base model, ceiling and trivial answers are level"
    questions = [f'Do {i} things.' for i in range(len(values))]
    n = len(values)
    levels = dict(distilled=values, one_shot=[base] * n, nearest=[0.1] * n, echo=[0.15] * n, teacher=[ceiling] * n)
    rows = [
        dict(
            test_set=test_set,
            system=s,
            question=q,
            expected=f'do it, {q}',
            prediction=f'{s} {path.name if s == "distilled" else student} {q}',
            pairs=[],
            step_f1=v,
            similarity=v,
        )
        for s, vs in levels.items()
        for q, v in zip(questions, vs)
    ]
    level = dict(mean=0.5, low=0.4, high=0.6)
    write_json(
        path / 'run.json',
        dict(
            format=2,
            llm_distill='1',
            config=dict(student=student, recipe=dict(random_seed=random_seed) | recipe),
            teacher={},
            stages={},
            notes={},
            size=dict(parameters=parameters) if parameters else {},
        ),
    )
    write_json(
        path / 'scores.json',
        [dict(test_set=test_set, system=s, n=n, main=metric, step_f1=level, similarity=level) for s in levels],
    )
    write_jsonl(path / 'item_scores.jsonl', rows)
    return path
