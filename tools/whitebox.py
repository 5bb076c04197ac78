"""Measure white-box distillation: cut SmolLM2 to every second layer, then train the cut in three ways, and score all on the quickstart's test sets.

`python tools/whitebox.py [--teacher DIR] [--epochs 6] [--seeds 0] [--work-dir runs/whitebox]` writes nbs/runs/whitebox.json, a row as each system is done;
the same command again goes on where it stopped. Without --teacher, SmolLM2 is fine-tuned on the pairs first, as the quickstart does."""
import argparse, json, time
from pathlib import Path

from llm_distill.evaluation import bootstrap
from llm_distill.finetuning import Recipe, encode_pair, finetune, mean_loss, split_validation
from llm_distill.metrics import similarity, step_f1
from llm_distill.prompts import read_jsonl, write_json
from llm_distill.student import Student
from llm_distill.whitebox import cut_layers, distill_logits

repo = Path(__file__).resolve().parents[1]
data, results = repo/'nbs'/'runs'/'quickstart', repo/'nbs'/'runs'/'whitebox.json'
arms = dict(plain=None, forward=dict(beta=0., hard=0.5), reverse=dict(beta=1., hard=0.5))


def scores(student):
    "Each metric on each test set: mean with interval, and the values of the items."
    out = {}
    for name in ('same', 'different'):
        rows = read_jsonl(data/f'test_{name}.jsonl')
        answers, expected = student.answer([o['task'] for o in rows]), [o['completion'] for o in rows]
        out[name] = {}
        for metric in (step_f1, similarity):
            values = metric(answers, expected)
            mean, low, high = (round(float(o), 4) for o in bootstrap(values))
            out[name][metric.__name__] = dict(mean=mean, low=low, high=high, items=[round(float(o), 4) for o in values])
    return out


def main():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument('--teacher')
    p.add_argument('--epochs', type=int, default=6)
    p.add_argument('--seeds', type=int, nargs='+', default=[0])
    p.add_argument('--work-dir', type=Path, default=repo/'runs'/'whitebox')
    a = p.parse_args()
    rows, pairs = json.loads(results.read_text()) if results.exists() else [], read_jsonl(data/'train.jsonl')
    full = Student.load('smollm2')
    encoded = [encode_pair(full, o['task'], o['completion']) for o in pairs]
    validation = split_validation(encoded, Recipe().validation_share)[1]

    def measure(system, seed, make, folder=None, **settings):
        "Make a student, score it, and add the row; nothing where the row is there"
        key = dict(system=system, seed=seed, **settings)
        if any(r | key == r for r in rows): return
        resumed = folder is not None and folder.exists() # then the times are those of the rest
        start, cpu = time.time(), time.process_time()
        student = make()
        seconds, cpu = time.time() - start, time.process_time() - cpu
        rows.append(key | dict(parameters=student.n_parameters, resumed=resumed, seconds=round(seconds, 1), cpu_seconds=round(cpu, 1),
                               validation_loss=round(mean_loss(student, validation), 4), scores=scores(student)))
        write_json(results, rows)
        print(system, seed, {k: {m: o['mean'] for m, o in v.items()} for k, v in rows[-1]['scores'].items()}, flush=True)

    teacher = Student.load(a.teacher) if a.teacher else finetune(full, pairs, Recipe(), a.work_dir/'teacher')
    measure('teacher', 0, lambda: teacher, epochs=Recipe().epochs)
    cut = cut_layers(full)
    measure('cut', 0, lambda: cut, epochs=0)
    for seed in a.seeds:
        recipe = Recipe(epochs=a.epochs, seed=seed)
        for name, settings in arms.items():
            folder = a.work_dir/f'{name}-{a.epochs}-{seed}'
            def make():
                if settings is None: return finetune(cut, pairs, recipe, folder)
                return distill_logits(teacher, cut, pairs, recipe, folder, **settings)
            measure(name, seed, make, folder, epochs=a.epochs, **settings or {})


if __name__ == '__main__': main()
