"""Results as a run would write them, built from the result models."""

from __future__ import annotations

import random
from statistics import median
from typing import Any, NamedTuple

import pytest

from optimizer.results import (
    Audit,
    BatchConsistency,
    BenchResult,
    BlockNoise,
    Comparison,
    Conditions,
    Curve,
    CurvePoint,
    DatasetInfo,
    DetectionMeasures,
    EngineBench,
    EngineStatus,
    ExampleImage,
    Gates,
    Hop,
    Knee,
    Latency,
    LatencyBound,
    LayerInfo,
    MarkedBox,
    PairedDrop,
    RunResult,
    ScenarioResult,
    Setting,
    StageRecord,
    Timing,
    ValidateResult,
    VerdictName,
)

SHA = "9f2c4be1a07d53f86ce10b7a44d9e2350f1b8c6de79a3342c5d0f1e8b7a69c04"
HOSTILE = "<script>alert('1')</script>|\"&`=x"


class Sample(NamedTuple):
    """One engine that was timed and validated."""

    name: str
    backend: str
    precision: str
    file: str
    rates: tuple[float, float]
    """Images/s at batch 1 and 8."""
    flips: int
    drop: tuple[float, float, float]
    """The drop and its interval, pp."""
    sqnr: float


_NONE = (0.0, -0.71, 0.71)
ORT, OV = ("ONNX Runtime", "onnxruntime"), ("OpenVINO", "openvino")


def _sample(
    engine: tuple[str, str],
    precision: str,
    rates: tuple[float, float],
    flips: int,
    drop: tuple[float, float, float],
    sqnr: float,
) -> Sample:
    name = f"{engine[0]} {precision.upper()}"
    suffix = "ort.onnx" if engine == ORT else "openvino.blob"
    file = f"engines/model.{precision}.{suffix}"
    return Sample(name, engine[1], precision, file, rates, flips, drop, sqnr)


ENGINES = [
    _sample(ORT, "fp32", (25.88, 25.41), 0, _NONE, 128.4),
    _sample(OV, "fp32", (26.42, 25.63), 0, _NONE, 127.9),
    _sample(OV, "bf16", (51.17, 51.84), 1, (0.19, -0.55, 1.04), 36.2),
    _sample(ORT, "int8", (81.36, 88.27), 4, (0.19, -0.83, 1.31), 27.2),
    _sample(OV, "int8", (92.41, 97.53), 4, (0.37, -0.62, 1.48), 27.1),
]
EAGER = ("PyTorch eager FP32", "torch", "fp32", "model.safetensors")
EAGER_RATE = (15.83, 19.12)
FINDINGS = [
    "OpenVINO INT8 computes 92.4 images/s at batch 1, 5.84 times PyTorch eager FP32.",
    "It loses 0.37 pp of top-1 on 540 images (95 % interval −0.62 to 1.48): within 2 pp.",
    "97.1 % of its FLOPs are computed in INT8; conv1 and fc stay in FP32.",
    "OpenVINO FP32 against ONNX Runtime FP32 is inconclusive at both batches.",
    "TensorRT-RTX FP16 was built for sm86 and sm89 and not run: this machine has no GPU.",
]
ROUNDS = 24
DISTURBED = [7, 15]


def _timed(
    name: str, backend: str, precision: str, file: str, batch: int, rate: float, samples: int
) -> EngineBench:
    generator = random.Random(f"{name}{batch}")
    centre = 1000 * batch / rate
    medians = [centre * (1 + generator.gauss(0, 0.006)) for _ in range(ROUNDS)]
    for index in DISTURBED:
        medians[index] *= 1.05
    p50 = median(medians)
    return EngineBench(
        name=name,
        file=file,
        backend=backend,
        status="ok",
        precision=precision,
        batch=batch,
        image_size=224,
        threads=2,
        samples=samples,
        rounds=ROUNDS,
        warmup_calls=5,
        latency_ms=Latency(
            mean=p50 * 1.006,
            p50=p50,
            p90=p50 * 1.02,
            p95=p50 * 1.04,
            p99=p50 * 1.11 if samples >= 299 else None,
        ),
        latency_ci95_ms=(p50 * 0.994, p50 * 1.005),
        images_per_s=rate,
        images_per_s_ci95=(rate * 0.9937, rate * 1.0049),
        batches_per_s=rate / batch,
        spans_ms={"host_to_device": 0.00037, "compute": p50, "device_to_host": 0.00058},
        start_s=0.31,
        first_inference_ms=p50 * 3.1,
        build_s=4.317,
        load_s=0.412,
        engine_bytes=25_634_112 if precision == "int8" else 102_401_536,
        peak_rss_bytes=412_876_800,
        round_medians_ms=medians,
        raw_file=f"samples/{file.rsplit('/', 1)[-1]}.b{batch}.npz",
    )


def _bench() -> BenchResult:
    engines, comparisons = [], []
    for index, batch in enumerate((1, 8)):
        samples = 640 if batch == 1 else 192
        engines.append(_timed(*EAGER, batch, EAGER_RATE[index], samples))
        for engine in ENGINES:
            name, rates = engine.name, engine.rates
            engines.append(_timed(*engine[:4], batch, rates[index], samples))
            ratio = rates[index] / EAGER_RATE[index]
            comparisons.append(
                Comparison(
                    a="PyTorch eager FP32",
                    b=name,
                    batch=batch,
                    ratio=ratio,
                    ci95=(ratio * 0.988, ratio * 1.011),
                    min_effect=0.02,
                    verdict="faster",
                )
            )
        comparisons.append(
            Comparison(
                a="ONNX Runtime FP32",
                b="OpenVINO FP32",
                batch=batch,
                ratio=1.021,
                ci95=(1.004, 1.034),
                min_effect=0.02,
                verdict="inconclusive",
            )
        )
    engines.append(_not_run_bench("TensorRT-RTX FP16", "engines/model.fp16.sm86.rtx", "fp16"))
    return BenchResult(
        created="2026-11-24T09:41:07+00:00",
        device={
            "cpu": "AMD EPYC 9354P",
            "cores": 2,
            "instruction_sets": ["AVX2", "AVX-512", "VNNI", "BF16"],
            "memory_bytes": 25_186_115_584,
            "system": "Linux 6.8",
            "gpus": [],
            "sha256": SHA,
        },
        headline="compute of one batch, inputs in memory; no decoding and no preprocessing",
        engines=engines,
        comparisons=comparisons,
        a_a_control=Comparison(
            a="OpenVINO INT8",
            b="OpenVINO INT8",
            batch=1,
            ratio=1.0012,
            ci95=(0.9951, 1.0068),
            min_effect=0.02,
            verdict="equivalent",
        ),
        conditions=Conditions(
            cpu="AMD EPYC 9354P",
            governor="performance",
            mhz=[3245.0, 3238.5, 3251.2],
            load_1min=[0.31, 1.9, 2.05],
            other_cpu_share=[0.24 if i in DISTURBED else 0.004 for i in range(ROUNDS)],
            disturbed_rounds=DISTURBED,
            notes=["Clock frequencies were read between rounds, not during them."],
        ),
        verdict="pass",
        reason="every engine was compared with the baseline; 2 of 24 rounds were disturbed",
    )


def _not_run_bench(name: str, file: str, precision: str) -> EngineBench:
    return EngineBench(
        name=name,
        file=file,
        backend="tensorrt-rtx",
        status="built-not-run",
        error="needs an NVIDIA GPU to be loaded; this machine has none",
        precision=precision,
        batch=1,
    )


def _hop(name: str, parent: str | None, executor: str, precision: str, **more: Any) -> Hop:
    defaults: dict[str, Any] = {
        "engine": None,
        "n": 540,
        "top1": 0.9852,
        "top1_ci95": (0.9710, 0.9925),
        "top5": 1.0,
        "flips": 0,
        "flips_vs_parent": 0,
        "drop_pp": 0.0,
        "drop_ci95_pp": (-0.71, 0.71),
        "mcnemar_p": 1.0,
        "max_abs_diff": 3.81e-06,
        "verdict": "pass",
    }
    return Hop(
        name=name, parent=parent, executor=executor, precision=precision, **(defaults | more)
    )


def _audit(requested: str, share: float) -> Audit:
    layers = [
        LayerInfo(
            name="conv1_fused",
            torch_names=["conv1", "relu"],
            type="Convolution",
            precision="fp32",
            flops=236_027_904,
        ),
        LayerInfo(
            name="fc",
            torch_names=["fc"],
            type="FullyConnected",
            precision="fp32",
            flops=4_096_000,
        ),
    ]
    differing = layers if share < 1 else []
    shares = {requested: share} | ({"fp32": 1 - share} if share < 1 else {})
    return Audit(
        asked=requested,
        computed=shares,
        share=share,
        min_share=0.95,
        differing=differing,
        verdict="pass",
        reason=f"{share:.1%} of the FLOPs are computed in {requested}, at least 95 % are required.",
    )


def _validate() -> ValidateResult:
    ort = "ONNX Runtime, as written"
    bf16: dict[str, Any] = {
        "sqnr_db": 36.9,
        "sqnr_vs_parent_db": 36.9,
        "flips": 1,
        "flips_vs_parent": 1,
        "drop_pp": 0.19,
        "drop_ci95_pp": (-0.55, 1.04),
    }
    int8: dict[str, Any] = {
        "sqnr_db": 27.2,
        "sqnr_vs_parent_db": 27.2,
        "flips": 4,
        "flips_vs_parent": 4,
        "drop_pp": 0.19,
        "drop_ci95_pp": (-0.83, 1.31),
        "max_abs_diff": 1.42,
        "worst_image": "digits:test/1093",
    }
    hops = [
        Hop(
            name="PyTorch FP32",
            engine=None,
            executor="PyTorch 2.14 eager FP32",
            parent=None,
            precision="fp32",
            n=540,
            top1=0.9852,
            top1_ci95=(0.9710, 0.9925),
            top5=1.0,
        ),
        _hop("ONNX FP32", "PyTorch FP32", ort, "fp32", sqnr_db=128.6, sqnr_vs_parent_db=128.6),
        _hop("ONNX BF16", "ONNX FP32", "OpenVINO, as written", "bf16", **bf16),
        _hop("ONNX INT8 (u8)", "ONNX FP32", ort, "int8", **int8),
    ]
    parents = {"fp32": "ONNX FP32", "bf16": "ONNX BF16", "int8": "ONNX INT8 (u8)"}
    for name, _, precision, file, _, flips, (drop, low, high), sqnr in ENGINES:
        hops.append(
            _hop(
                f"{name} engine",
                parents[precision],
                name,
                precision,
                engine=file.rsplit("/", 1)[-1],
                flips=flips,
                flips_vs_parent=0,
                drop_pp=drop,
                drop_ci95_pp=(low, high),
                sqnr_db=sqnr,
                sqnr_vs_parent_db=61.3,
                mcnemar_p=0.625 if flips else 1.0,
                max_abs_diff=1.47 if precision == "int8" else 4.2e-06,
                worst_image="digits:test/1093" if flips else None,
            )
        )
    hops.append(
        Hop(
            name="TensorRT-RTX FP16 engine",
            engine="model.fp16.sm86.rtx",
            executor="TensorRT-RTX 1.7",
            parent="ONNX FP32",
            precision="fp16",
            status="built-not-run",
            error="needs an NVIDIA GPU to be loaded; this machine has none",
        )
    )
    return ValidateResult(
        created="2026-11-24T09:40:12+00:00",
        reference="model.safetensors",
        dataset=DatasetInfo(name="digits:test", n=540, sha256=SHA[::-1], image_size=224),
        hops=hops,
        finding="OpenVINO INT8 loses 0.37 pp of top-1 (95 % interval −0.62 to 1.48), within the "
        "limit of 2 pp; all of it is lost in quantization.",
        batch_consistency=[
            BatchConsistency(
                engine=file,
                batches=[1, 3, 8],
                max_abs_diff=2.4e-06,
                tolerance=1e-4,
                verdict="pass",
                reason="Alone, repeated and with others: the same logits within the tolerance.",
            )
            for _, _, precision, file, *_ in ENGINES
            if precision == "int8"
        ],
        audits={
            file.rsplit("/", 1)[-1]: _audit(precision, 0.9712 if precision == "int8" else 1.0)
            for _, _, precision, file, *_ in ENGINES
        },
        layers={
            "ONNX BF16": [
                BlockNoise(module="maxpool", sqnr_db=52.1),
                BlockNoise(module="layer1.0", sqnr_db=47.3),
            ],
            "ONNX INT8 (u8)": [
                BlockNoise(module="maxpool", sqnr_db=None),
                BlockNoise(module="layer1.0", sqnr_db=31.8),
                BlockNoise(module="logits", sqnr_db=27.2),
            ],
        },
        gates=Gates(max_drop_pp=2.0, max_flips=0.02),
        predictions_file="predictions.npz",
        verdict="pass",
    )


def _build_stage(
    label: str, backend: str, precision: str, file: str, *, cached: bool
) -> StageRecord:
    status: EngineStatus = "built-not-run" if backend == "tensorrt-rtx" else "ok"
    return StageRecord(
        name="build",
        label=label,
        file=file,
        cached=cached,
        seconds=0.02 if cached else 4.62,
        status=status,
        note=None if status == "ok" else "needs an NVIDIA GPU to be loaded; this machine has none",
        manifest={
            "kind": "engine",
            "file": file.rsplit("/", 1)[-1],
            "sha256": SHA,
            "key": SHA[::-1],
            "settings": {
                "backend": backend,
                "precision": precision,
                "targets": ["sm86", "sm89"] if backend == "tensorrt-rtx" else [],
            },
            "libraries": {"openvino": "2026.3.0"} if backend == "openvino" else {},
            "preprocessing": {"crop": 224, "sha256": SHA},
            "device": {"cpu": "AMD EPYC 9354P"} if backend != "tensorrt-rtx" else None,
            "details": {"build_s": 4.317}
            | ({"audit": _audit("fp16", 1.0).model_dump()} if precision == "fp16" else {}),
        },
    )


def make_run(
    *,
    validate: ValidateResult | None = None,
    bench: BenchResult | None = None,
    stages: list[StageRecord] | None = None,
    verdict: VerdictName = "pass",
    findings: list[str] | None = None,
    title: str = "ResNet-50 on digits: FP32, BF16 and INT8 on a CPU",
) -> RunResult:
    return RunResult(
        created="2026-11-24T09:41:30+00:00",
        title=title,
        command="resnet-opt run --arch resnet50 --data digits --precision fp32,bf16,int8,fp16 "
        "--engine openvino,onnxruntime,tensorrt-rtx --batch 1,8 --max-drop 2pp -o runs/digits",
        recipe={
            "model": {"arch": "resnet50", "data": "digits"},
            "build": {"precision": ["fp32", "bf16", "int8"], "engine": ["openvino", "onnxruntime"]},
            "bench": {"batch": [1, 8], "min_effect": "2%"},
        },
        environment={
            "python": "3.11.2",
            "system": "Linux 6.8",
            "libraries": {"torch": "2.14.1", "onnxruntime-gpu": "1.31.0", "openvino": "2026.3.0"},
        },
        stages=stages or [],
        validate=validate,
        bench=bench,
        verdict=verdict,
        findings=findings if findings is not None else FINDINGS,
        seconds=412.7,
    )


def full() -> RunResult:
    stages = [
        StageRecord(name="train", label="on digits:train", file="model.safetensors", seconds=81.4),
        StageRecord(name="export", label="opset 20, dynamic batch", file="model.onnx", seconds=6.1),
    ]
    for index, engine in enumerate(ENGINES):
        stages.append(_build_stage(*engine[:4], cached=index == 1))
    rtx = ("TensorRT-RTX FP16", "tensorrt-rtx", "fp16", "engines/model.fp16.sm86.rtx")
    stages.append(_build_stage(*rtx, cached=False))
    return make_run(validate=_validate(), bench=_bench(), stages=stages)


def failing() -> RunResult:
    """The INT8 graph loses too much, one engine fails to build, one fails at batch 8."""
    run = full()
    assert run.validate_
    assert run.bench
    for hop in run.validate_.hops:
        if hop.precision == "int8":
            hop.drop_pp, hop.drop_ci95_pp, hop.verdict = 6.3, (4.1, 8.9), "fail"
            hop.flips, hop.top1, hop.sqnr_db, hop.mcnemar_p = 41, 0.9222, 9.4, 1.2e-07
    run.validate_.first_failing_hop = "ONNX INT8 (u8)"
    run.validate_.verdict = run.verdict = "fail"
    run.validate_.finding = (
        "INT8 loses 6.30 pp of top-1; it is lost in quantization, before any engine."
    )
    check = run.validate_.batch_consistency[0]
    check.verdict, check.max_abs_diff = "fail", 0.84
    check.failing, check.reason = (
        ["permuted, batch 8, image 17"],
        "Outputs depend on the other images.",
    )
    for index, engine in enumerate(run.bench.engines):
        if engine.name == "OpenVINO BF16" and engine.batch == 8:
            run.bench.engines[index] = EngineBench(
                name=engine.name,
                file=engine.file,
                backend=engine.backend,
                status="failed",
                error="the process was killed at 24 GiB of memory",
                precision="bf16",
                batch=8,
            )
    run.stages.append(
        StageRecord(
            name="build",
            label="OpenVINO FP8",
            seconds=0.4,
            status="failed",
            note="FP8 is not computed by this CPU",
        )
    )
    run.findings = ["INT8 loses 6.30 pp of top-1 on 540 images (95 % interval 4.1 to 8.9)."]
    return run


def inconclusive() -> RunResult:
    run = full()
    assert run.validate_
    assert run.bench
    assert run.bench.a_a_control
    run.verdict = run.validate_.verdict = run.bench.verdict = "inconclusive"
    run.validate_.gates.max_drop_pp = 1.0
    run.validate_.images_needed = 1853
    for hop in run.validate_.hops:
        if hop.drop_ci95_pp and hop.drop_ci95_pp[1] > 1.0:
            hop.verdict = "inconclusive"
    run.bench.reason = (
        "The A/A control shows a difference of 3.1 %; run again on a quieter machine."
    )
    run.bench.a_a_control.verdict = "inconclusive"
    run.bench.a_a_control.ratio, run.bench.a_a_control.ci95 = 1.031, (0.984, 1.071)
    run.validate_.audits["model.fp32.ort.onnx"] = Audit(
        asked="fp32",
        computed={},
        share=None,
        min_share=0.95,
        verdict="inconclusive",
        reason="ONNX Runtime does not report the precision of its fused layers.",
    )
    return run


def single() -> RunResult:
    """One engine at one batch, nothing to compare it with."""
    run = full()
    assert run.bench
    run.validate_, run.stages = None, []
    run.bench.engines = [run.bench.engines[5]]
    run.bench.comparisons, run.bench.a_a_control = [], None
    return run


def many(count: int = 40) -> RunResult:
    run = full()
    assert run.bench
    run.validate_, run.stages, run.bench.comparisons = None, [], []
    run.bench.engines = [
        _timed(
            f"OpenVINO INT8 variant {i}", "openvino", "int8", f"engines/v{i}.blob", 1, 40.0 + i, 640
        )
        for i in range(count)
    ]
    return run


def hostile() -> RunResult:
    """Every text that a user or a model file controls is an attack."""
    run = full()
    assert run.bench
    assert run.validate_
    for engine in run.bench.engines:
        if engine.name == "OpenVINO INT8":
            engine.name = HOSTILE
            engine.precision = HOSTILE
            engine.raw_file = 'javascript:alert(1)//" onclick="x'
        engine.error = HOSTILE if engine.error else None
    for comparison in run.bench.comparisons:
        comparison.b = HOSTILE if comparison.b == "OpenVINO INT8" else comparison.b
    hop = run.validate_.hops[3]
    hop.worst_image = hop.executor = HOSTILE
    run.validate_.first_failing_hop = hop.name
    for audit in run.validate_.audits.values():
        audit.reason = HOSTILE
        for layer in audit.differing:
            layer.name = HOSTILE
    run.title = run.command = HOSTILE
    run.findings = [HOSTILE]
    run.recipe = {HOSTILE: HOSTILE}
    run.environment = {"libraries": {HOSTILE: HOSTILE}, HOSTILE: HOSTILE}
    run.bench.device[HOSTILE] = {HOSTILE: [HOSTILE]}
    run.bench.scenarios = [
        ScenarioResult(
            engine=HOSTILE,
            scenario="offline",
            status="ok",
            metric=HOSTILE,
            value=1.0,
            unit="samples/s",
            notes=[HOSTILE],
        )
    ]
    run.bench.curves = [_curve(HOSTILE, None)]
    run.stages[0].note = run.stages[0].file = HOSTILE
    return run


def _curve(engine: str, bound: LatencyBound | None) -> Curve:
    """Batches 1 to 8 with one stream and with two; the largest of the second failed."""
    points = []
    for streams, rates in ((1, (80.0, 92.0, 95.0, 96.0)), (2, (85.0, 96.0, 105.0, None))):
        for batch, rate in zip((1, 2, 4, 8), rates, strict=True):
            at = Setting(batch=batch, threads=2, streams=streams)
            if rate is None:
                points.append(CurvePoint(setting=at, status="failed", error="crashed"))
                continue
            p50 = 1000 * batch * streams / rate
            points.append(
                CurvePoint(
                    setting=at,
                    status="ok",
                    samples=400 // batch,
                    rounds=12,
                    images_per_s=rate,
                    images_per_s_ci95=(rate * 0.99, rate * 1.01),
                    latency_ms=Latency(
                        mean=p50, p50=p50, p90=p50 * 1.1, p99=p50 * 1.3 if batch == 1 else None
                    ),
                    latency_ci95_ms=(p50 * 0.99, p50 * 1.01),
                    bounded_ci95_ms=(p50 * 1.05, p50 * 1.2) if bound else None,
                    holds=p50 * 1.2 <= bound.max_latency_ms if bound else None,
                )
            )
    return Curve(
        engine=engine,
        points=points,
        knees=[Knee(setting=points[1].setting, of_best=92 / 96, certain=False)],
        fastest=points[6].setting,
        bound=bound,
        best=points[1].setting if bound else None,
    )


def swept() -> RunResult:
    """A run with two sweeps: one engine with a latency bound, one without."""
    run = full()
    assert run.bench
    bound = LatencyBound(percentile="p90", max_latency_ms=30.0)
    run.bench.curves = [_curve("OpenVINO INT8", bound), _curve("ONNX Runtime INT8", None)]
    return run


def _box(left: float, name: str, change: str = "kept") -> MarkedBox:
    return MarkedBox.model_validate(
        {"box": (left, 10.0, left + 30.0, 50.0), "name": name, "score": 0.62, "change": change}
    )


def _measures(lost: int | None = None, new: int | None = None, **more: Any) -> DetectionMeasures:
    return DetectionMeasures(
        ap=0.41, ap50=0.6, ap75=0.43, ap_small=0.3, ap_medium=0.5, ap_large=None,
        by_class={"cat": 0.5, HOSTILE: 0.3, "emu": None}, score_threshold=0.3,
        detections=100 - (lost or 0) + (new or 0), lost=lost, new=new, lost_vs_parent=lost,
        new_vs_parent=new, sqnr_scores_db=31.0, score_change=None if lost is None else -0.012,
        precision_at_recall={iou: [0.9] * 50 + [0.2] * 51 for iou in ("0.50", "0.75")}, **more,
    )  # fmt: skip


def detector() -> RunResult:
    """A detector: one engine loses detections, another has those of the reference."""
    run = full()
    assert run.validate_
    drops: dict[str, Any] = {
        "drop_by_size": {"small": PairedDrop(drop_pp=0.8, ci95_pp=(0.1, 1.5))},
        "drop_by_class": {HOSTILE: PairedDrop(drop_pp=-0.4, ci95_pp=(-1.0, 0.2))},
    }
    for hop in run.validate_.hops:
        hop.top1 = hop.top5 = hop.top1_ci95 = hop.flips = hop.mcnemar_p = None
        if hop.status == "ok":
            changed = (7, 2) if hop.precision == "int8" else (0, 0)
            more: dict[str, Any] = {} if hop.parent is None else drops
            hop.detection = _measures(*(changed if hop.parent else (None, None)), **more)
    names = {hop.precision: hop.name for hop in run.validate_.hops if hop.engine}
    run.validate_.task = "detection"
    run.validate_.gates = Gates(max_drop_pp=2.0, max_lost=0.1)
    run.validate_.examples = [
        ExampleImage(
            name=HOSTILE, width=128, height=96, jpeg="/9j/4AAQSkZJRg==",
            reference=[_box(5, "cat"), _box(60, HOSTILE)],
            engines={
                names["int8"]: [_box(5, "cat"), _box(90, "emu", "new"), _box(60, HOSTILE, "lost")],
                names["bf16"]: [_box(5, "cat"), _box(60, HOSTILE)],
            },
        )
    ]  # fmt: skip
    run.validate_.timing = Timing(
        wall_s=9, pass_s=8, waiting_s=1, decoding_cpu_s=1, hops_cpu_s={}, consistency_cpu_s=0,
        reading_cpu_s={names["int8"]: 0.54}, images_computed={names["int8"]: 540},
    )  # fmt: skip
    return run


SAMPLES = {
    "detector": detector,
    "swept": swept,
    "full": full,
    "failing": failing,
    "inconclusive": inconclusive,
    "single": single,
    "many": many,
    "hostile": hostile,
    "no-bench": lambda: make_run(validate=_validate()),
    "no-validate": lambda: make_run(bench=_bench()),
    "empty": lambda: make_run(findings=[], verdict="inconclusive"),
}


@pytest.fixture
def full_run() -> RunResult:
    return full()


@pytest.fixture
def swept_run() -> RunResult:
    return swept()


@pytest.fixture
def failing_run() -> RunResult:
    return failing()


@pytest.fixture
def inconclusive_run() -> RunResult:
    return inconclusive()


@pytest.fixture
def single_run() -> RunResult:
    return single()


@pytest.fixture
def many_run() -> RunResult:
    return many()


@pytest.fixture
def hostile_run() -> RunResult:
    return hostile()


@pytest.fixture
def empty_run() -> RunResult:
    return SAMPLES["empty"]()


@pytest.fixture(params=list(SAMPLES))
def any_run(request: pytest.FixtureRequest) -> RunResult:
    return SAMPLES[request.param]()
