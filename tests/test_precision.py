"""What numbers are computed in: what is loaded, what an analysis takes, and what reports say."""

from __future__ import annotations

import json

import pytest
import torch

import analyses
import interp
from interp import edits
from interp.core import precision
from interp.core.tokens import Tokens
from interp.loading import CheckFailed, checkup
from interp.report.provenance import provenance

from . import calls
from .test_contract import config_of, small_model

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


@pytest.mark.parametrize(
    ("own", "device", "wanted"),
    [
        (torch.bfloat16, CPU, torch.float32), (torch.float16, CPU, torch.float32),
        (torch.float32, CPU, torch.float32), (torch.float64, CPU, torch.float64),
        (torch.bfloat16, CUDA, torch.bfloat16), (torch.float16, CUDA, torch.float16),
    ],
)  # fmt: skip
def test_an_analysis_computes_half_precision_in_float32_on_a_cpu(own, device, wanted):
    assert precision.analysis_dtype(own, device) == wanted


@pytest.mark.parametrize("own", ["float16", "bfloat16", "float32", "float64"])
def test_load_keeps_the_models_dtype_unless_told(own, tmp_path):
    dtype = getattr(torch, own)
    interp.save(calls.tiny(dtype), tmp_path / "m")
    plain = interp.load(tmp_path / "m")
    assert plain.dtype == dtype
    auto, told = (interp.load(tmp_path / "m", dtype=one) for one in ("auto", "float64"))
    assert auto.dtype == precision.analysis_dtype(dtype, CPU) and told.dtype == torch.float64
    for model in (plain, auto, told):
        assert model.source["dtype"] == own
        for name, value in model.state_dict().items():  # half precision lies within float32
            assert torch.equal(value.double(), plain.state_dict()[name].double()), name
    with pytest.raises(ValueError, match=r"expected one of float16, .*, auto, or None"):
        interp.load(tmp_path / "m", dtype="half")


@pytest.mark.parametrize("name", analyses.names())
def test_every_analysis_takes_auto_from_the_command_line(name):
    assert config_of(name).dtype == "auto"
    assert config_of(name, "--dtype", "bfloat16").dtype == "bfloat16"


@pytest.mark.parametrize("name", analyses.names())
def test_every_analysis_runs_on_bfloat16_and_says_so(name, tmp_path, unchecked):
    report = analyses.load(name).run(small_model().to(torch.bfloat16), config_of(name))
    assert "Computed in bfloat16 on cpu." in report.certainty
    page = report.write(tmp_path / "r")
    assert "Computed in bfloat16 on cpu." in page.read_text(encoding="utf-8")


def test_a_report_says_what_it_was_computed_in(tmp_path, monkeypatch, capsys):
    interp.save(small_model().to(torch.bfloat16), tmp_path / "m")
    module = analyses.load("attention-patterns")
    for options, dtype, sentence in (
        ([], "float32", "Computed in float32 on cpu; the model's own dtype is bfloat16 (--dtype "
         "bfloat16 computes in that)."),
        (["--dtype", "bfloat16"], "bfloat16", "Computed in bfloat16 on cpu, the model's own "
         "dtype."),
    ):  # fmt: skip
        out = tmp_path / dtype
        words = ["--prompt", "king queen man", "--out", str(out), "--model", str(tmp_path / "m")]
        assert analyses.perform(module, [*words, "--device", "cpu", *options], "test") == 0
        manifest = json.loads((out / "manifest.json").read_text())
        assert manifest["dtype"] == dtype and manifest["precision"] == sentence
        assert manifest["model"]["source"]["dtype"] == "bfloat16"
        page = (out / "index.html").read_text(encoding="utf-8")
        assert page.count(sentence.replace("'", "&#39;")) == 2  # how sure, and where it comes from


def test_a_float32_report_has_no_remark():
    facts = provenance(None, calls.tiny())
    assert facts["precision"] == "Computed in float32 on cpu."
    report = interp.report.Report("t", "q?", provenance=facts)
    assert report.certainty == []


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("loaded", [None, "auto"])
def test_the_doctor_shows_what_float32_changes(dtype, loaded, tmp_path):
    interp.save(calls.tiny(dtype), tmp_path / "m")
    model = interp.load(tmp_path / "m", dtype=loaded)
    (line,) = [one for one in interp.doctor(model).findings if one.what.startswith("float32 in")]
    tokens = checkup._tokens(model, checkup.TEXT)
    half, single = (calls.tiny(one)(tokens).double() for one in (dtype, torch.float32))
    moved, size = (half - single).abs().max(), single.abs().max()
    share = (half.argmax(-1) != single.argmax(-1)).double().mean()
    name = precision.dtype_name(dtype)
    assert line.text == (
        f"against {name} the largest difference is {moved:.2g} of {size:.3g}, and {share:.0%} of "
        f"{tokens.shape[1]} positions have another first token"
    )
    assert line.holds is None and moved > 0


def test_the_doctor_says_where_there_is_no_half_precision():
    found = interp.doctor(calls.tiny())
    (line,) = [one for one in found.findings if one.what.startswith("float32 in")]
    assert line.text == "the model is in float32 itself"


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_a_weight_that_is_not_finite_is_refused_at_the_door(value, tmp_path):
    model = calls.tiny()
    with torch.no_grad():
        model.blocks[1].attn.qkv_weight[2 * 8 + 1, 3] = value
    interp.save(model, tmp_path / "m")
    with pytest.raises(CheckFailed, match=r"blocks\.1\.attn\.qkv_weight holds .*head 2 of W_Q"):
        interp.load(tmp_path / "m")
    opened = interp.load(tmp_path / "m", check=False)
    assert not opened.blocks[1].attn.W_Q[2].isfinite().all()
    with pytest.raises(ValueError, match="head 2 of W_Q"):
        opened.pool([[1, 2, 3]])


def test_a_mean_of_float16_does_not_overflow():
    """300 positions of 250 sum to 75,000, past the largest float16."""
    model = calls.tiny(torch.float16, n_ctx=300, norm="none", positions="none", d_mlp=0)
    with torch.no_grad():
        model.embed.W_E.fill_(250.0)
        for block in model.blocks:
            block.attn.out_weight.zero_()
            block.attn.qkv_weight.zero_()
            block.attn.out_bias.zero_()
    pooled = model.pool(torch.ones(1, 300, dtype=torch.long))
    assert torch.equal(pooled, torch.full_like(pooled, 250.0))


def test_a_mean_over_a_reference_in_float16_does_not_overflow():
    model = calls.tiny(torch.float16)
    reference = Tokens(torch.ones(40, 10, dtype=torch.long))
    values = torch.full((40, 10, 32), 250.0, dtype=torch.float16)
    found = edits._mean(values, model.sites["blocks.0.hook_resid_pre"], reference, "all")
    assert found.dtype == torch.float16 and bool((found == 250).all())
