"""Half maps of instamap with its defaults against relion_reconstruct's: quality, honesty, time and
memory, turn by turn in one run.

    python -m benchmarks.accuracy.halves --data T antibody channel [--make PATH] [--score PATH]
        [--seeds 0 1 2] [--out FILE.json]

instamap sees no truth and no mask. Times are those of whole processes, start-up included: one for
both halves of instamap, the sum of two for relion_reconstruct, which draws nothing at random and is
repeated with each seed for its time alone. Order changes each turn.
"""

import tempfile
from pathlib import Path

from benchmarks.lib import runs, sets
from benchmarks.lib.common import environment
from benchmarks.lib.options import parser
from benchmarks.lib.report import median, megabytes, number, ratio, save, show, spread, table

SCORES = ("auc", "half_auc", "map_auc", "half1_0.5", "half1_0.143", "map_0.5", "implied")
RESOURCES = ("seconds", "cpu_seconds", "rss", "anonymous")
HEAD = [
    "SET",
    "PROGRAM",
    "AUC",
    "SPREAD",
    "HALF AUC",
    "MAP AUC",
    "HALF1 0.5",
    "HALF1 0.143",
    "MAP 0.5",
    "IMPLIED",
    "SECONDS",
    "CPU S",
    "RSS MB",
    "ANON MB",
]


def turn(
    folder: Path, work: Path, seed: int, tool: Path, reverse: bool, *, together: bool = False
) -> list[dict]:
    """Both programs once. together: both runs of relion_reconstruct at the same time."""
    out = {"instamap": work / "instamap", "relion_reconstruct": work / "relion"}
    programs = {
        "instamap": lambda: runs.by_instamap(folder, out["instamap"], seed),
        "relion_reconstruct": lambda: runs.by_relion(
            folder, out["relion_reconstruct"], together=together
        ),
    }
    found = {name: programs[name]() for name in sorted(programs, reverse=reverse)}
    results = []
    for name, run in found.items():
        result = {"set": folder.resolve().name, "program": name, "seed": seed}
        if run is None:
            show("relion_reconstruct is not installed: nothing to compare with")
            continue
        if run.code:
            show(f"{name} failed on {folder.name}:\n{run.output[-800:]}")
            results.append({**result, "failed": run.output[-800:]})
            continue
        scores = runs.judge(tool, folder, out[name], out["instamap"] / "mask.mrc")
        result = {**result, **run.numbers(), **scores}
        if name == "instamap":
            result["fits"] = runs.fits(out[name])
            result["needs"] = runs.needs(run, out[name])
        results.append(result)
    return results


def summary(results: list[dict]) -> tuple[list[list], list[str]]:
    """Rows of medians over the seeds, and a sentence for each set."""
    rows = []
    words = []
    for name in dict.fromkeys(r["set"] for r in results):
        middle = {}
        for program in ("relion_reconstruct", "instamap"):
            some = [
                r
                for r in results
                if r["set"] == name and r["program"] == program and "failed" not in r
            ]
            if some:
                one = middle[program] = {
                    key: median(r.get(key) for r in some) for key in (*SCORES, *RESOURCES)
                }
                width = spread(r.get("auc") for r in some)
                scores = [
                    number(one["auc"], ".4f"),
                    number(width, ".4f"),
                    *[number(one[k], ".4f") for k in SCORES[1:3]],
                ]
                rows.append(
                    [
                        name,
                        program,
                        *scores,
                        *[number(one[k], ".2f") for k in SCORES[3:]],
                        *_resources(one),
                    ]
                )
        if len(middle) == 2:
            words.append(_compare(name, middle["instamap"], middle["relion_reconstruct"]))
    return rows, words


def _resources(one: dict) -> list[str]:
    memory = [number(megabytes(one[k]), ".0f") for k in ("rss", "anonymous")]
    return [number(one["seconds"], ".1f"), number(one["cpu_seconds"], ".1f"), *memory]


def _compare(name: str, ours: dict, theirs: dict) -> str:
    time, cpu = (number(ratio(ours[k], theirs[k]), ".2f") for k in ("seconds", "cpu_seconds"))

    def gain(key):
        return number(
            ours[key] - theirs[key] if ours[key] is not None and theirs[key] is not None else None,
            "+.4f",
        )

    said = (
        f"{name}: {time} x the time ({cpu} x the processor time), AUC {gain('auc')}, half-map AUC"
        f" {gain('half_auc')}"
    )
    if ours["implied"] is None or ours["map_0.5"] is None:
        return said
    honest = ours["implied"] > 0.999 * ours["map_0.5"]  # the same shell; the outside tool rounds
    return (
        said + f", halves imply {ours['implied']:.2f} Å, truth says {ours['map_0.5']:.2f} Å:"
        f" {'honest' if honest else 'TOO OPTIMISTIC'}"
    )


def main() -> None:
    options = parser(__doc__).parse_args()
    where = environment()
    folders = [sets.find(folder, options.make) for folder in options.data]
    results = []
    runs.warm_up()
    for i, seed in enumerate(options.seeds):
        for folder in folders:
            with tempfile.TemporaryDirectory() as work:
                results += turn(folder, Path(work), seed, options.score, reverse=i % 2 == 1)
    rows, words = summary(results)
    show("\n".join([table(HEAD, rows), "", *words]))
    save(
        options.out,
        "halves",
        where,
        results,
        sets=[sets.describe(folder) for folder in folders],
        seeds=options.seeds,
    )


if __name__ == "__main__":
    main()
