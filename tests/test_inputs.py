"""What the probe command is given: names, own sets beside public ones, and a configuration that runs again."""

import json
from pathlib import Path

import numpy as np
import pytest
import wandb
import yaml
from PIL import Image

from papsmear.cli import main
from papsmear.errors import UsageError
from papsmear.probes.classes import HERLEV
from papsmear.probes.datasets import CellSet
from papsmear.probes.inputs import check_names, other_counts
from papsmear.probes.sources import SetSource


def test_a_name_that_leads_nowhere_is_refused_before_anything_is_read() -> None:
    check_names({"herlev": Path("x"), "mine": SetSource(Path("x")), "cells": Path("x.csv")}, {"tiles": Path("y.csv")})
    with pytest.raises(UsageError, match=r"--targets: no set is called 'tiles'; give herlev, hmchh, sipakmed, or your"):
        check_names({"herlev": Path("x")}, {"tiles": Path("y")})
    with pytest.raises(UsageError, match=r"--targets\.a: one of the sets has that name too"):
        check_names({"a": Path("x.csv")}, {"a": Path("y.csv")})
    with pytest.raises(UsageError, match=r"--sets: a set's name has letters, digits, '_' and '-' only, not '\.\./a'"):
        check_names({"../a": Path("x.csv")}, {})


def test_other_counts_are_told_with_both_numbers() -> None:
    cells = CellSet("herlev", HERLEV[:2], tuple("abc"), (), np.array([0, 0, 1]), {})
    told = other_counts(cells)
    assert told.startswith("3 cells, where the public set has 917: 2 carcinoma in situ instead of 150, 1 light")
    assert "0 normal superficial instead of 74" in told
    assert other_counts(CellSet("mine", HERLEV[:2], tuple("abc"), (), np.array([0, 0, 1]), {})) == ""


def test_sets_of_ones_own_are_probed_and_their_configuration_runs_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    generator, lines = np.random.default_rng(0), ["file,class,label,slide_id,mpp"]
    for i in range(32):
        file = tmp_path / "mine" / ("LSIL", "NILM")[i % 2] / f"{i}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        rgb = generator.integers(0, 120, (30 + i % 5, 30, 3)) + 100 * (i % 2)
        Image.fromarray(rgb.astype(np.uint8)).save(file)
        lines.append(f"{file.relative_to(tmp_path)},{file.parent.name},{1 - i % 2},s{i // 4},0.25")
    (tmp_path / "listed.csv").write_text("\n".join(lines) + "\n")
    mine = f"{{path: {tmp_path / 'mine'}, classes: {{lsil: positive, nilm: negative}}, mpp: 0.4}}"
    words = ["--encoders=random:test_vit", "--ks=[1,3]", "--runs=1", "--device=cpu", "--resize=mpp"]
    sets = [f"--sets.mine={mine}", f"--sets.listed={tmp_path / 'listed.csv'}"]
    out, again = tmp_path / "out", tmp_path / "again"
    assert main(["probe", *words, *sets, f"--out={out}"]) == 0
    found = json.loads((out / "results.json").read_text())
    assert found["protocol"]["resize"] == "mpp"
    assert [c["side"] for c in found["sets"]["mine"]["classes"]] == ["positive", "negative"]
    assert {row["set"] for row in found["protocols"] if row["honest"]} == {"listed"}, "its slides are told"
    assert all(row["weighted_f1"]["mean"] == 1 for row in found["scores"])
    assert found["transfer"] == []
    page = (out / "report.html").read_text()
    assert "are brought to the encoder's µm/px" in page
    assert "Published figures, not measured here" not in page
    config = yaml.safe_load((out / "config.yaml").read_text())
    assert config["sets"]["mine"] == {
        "path": str(tmp_path / "mine"), "classes": {"lsil": "positive", "nilm": "negative"}, "mpp": 0.4,
    }  # fmt: skip
    assert main(["probe", "-c", str(out / "config.yaml"), f"--out={again}"]) == 0
    second = json.loads((again / "results.json").read_text())
    assert second["protocols"] == found["protocols"]
    capsys.readouterr()
    with pytest.raises(SystemExit, match="0"):
        main(["probe", "-c", str(out / "config.yaml"), f"--out={again}", "--print_config"])
    assert yaml.safe_load(capsys.readouterr().out)["sets"]["mine"]["classes"]["lsil"] == "positive"
    wandb.teardown()
