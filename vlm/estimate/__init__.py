"""What a training will take, before a job is queued: parameters, FLOPs, memory per GPU, hours."""

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from transformers import AutoConfig

from shards.errors import BadInput
from vlm.config import Recipe
from vlm.data.cost import Cost
from vlm.data.images import Pixels
from vlm.data.mixture import Corpus
from vlm.engine import CONFIGS, deepspeed_config
from vlm.estimate.activations import build, peak
from vlm.estimate.memory import Memory, Zero
from vlm.estimate.rows import Documents, MeanSample
from vlm.estimate.work import Parameters, count_parameters, flop_per_sample, recomputed_per_sample
from vlm.inputs import plan_of, steps_of
from vlm.model.assemble import Assembly
from vlm.model.load import DTYPES, base_folder

A100_TFLOPS = 312 * 0.4
GPU_GIB = 80.0
# rows whose memory is found, in data.micro_batch_tokens; of 0 it is one document
_ROWS = (0, 1, 4)


@dataclass(frozen=True)
class Estimate:
    """The whole answer; `memory` by DeepSpeed configuration, `tflops` is what one GPU is assumed to sustain."""

    ranks: int
    dtype: str
    deepspeed: str
    checkpoint_blocks: int
    parameters: Parameters
    samples: int
    lengths: MeanSample
    steps: int
    tokens_per_step: float
    tflop_per_sample: float
    recomputed_per_sample: float
    row_tokens: int
    memory: dict[str, Memory]
    gpu_gib: float
    tflops: float
    tokens_per_second: float
    seconds_per_step: float
    hours: float
    gpu_hours: float

    def to_json(self) -> dict[str, Any]:
        """Plain fields."""
        return asdict(self)

    def lines(self) -> list[str]:
        """For a person."""
        mean, counts = self.lengths, self.parameters
        read = "" if mean.read == self.samples else f", lengths from {mean.read:,} of them"
        share = f"{100 * self.tflops / 312:.0f} % of an A100's 312"
        twice = f", {self.recomputed_per_sample:.4g} of it twice" if self.recomputed_per_sample else ""
        return [
            f"parameters  {counts.total:,}, trained {counts.trained:,} ({100 * counts.trained / counts.total:.3g} %)",
            f"data        {self.samples:,} samples{read}: {mean.tokens:,.1f} tokens, {mean.supervised:,.1f} supervised",
            f"plan        {self.steps:,} steps of {self.tokens_per_step:,.0f} tokens on {self.ranks} GPU(s)",
            f"compute     {self.tflop_per_sample:.4g} TFLOP a sample{twice}",
            f"time        {self.seconds_per_step:.3g} s a step, {self.hours:.4g} h, {self.gpu_hours:.4g} GPU hours, "
            f"{self.tokens_per_second:,.0f} tokens/s",
            f"assuming    {self.tflops:.4g} TFLOP/s sustained a GPU ({share}); another: --tflops",
            f"memory      a GPU, {self.dtype}, at its peak; checkpoint_blocks {self.checkpoint_blocks}, largest row "
            f"{self.row_tokens:,} tokens:",
            *(line for name in self.memory for line in self._memory_lines(name)),
        ]

    def _memory_lines(self, name: str) -> list[str]:
        m = self.memory[name]
        parts = {"weights": m.weights, "gradients": m.gradients, "optimizer": m.optimizer}
        parts |= (
            {"its step": m.step}
            if m.step > m.activations + m.buffers
            else {"activations": m.activations, "buffers": m.buffers}
        )
        most = f"at most data.micro_batch_tokens={m.micro_batch_tokens}" if m.micro_batch_tokens else "does not fit"
        return [
            f"  {name:14}{m.total / 2**30:9.3g} GiB = "
            + " + ".join(f"{part} {size / 2**30:.3g}" for part, size in parts.items())
            + ("  <- this recipe" if name == self.deepspeed else ""),
            f"  {'':14}a GPU of {self.gpu_gib:g} GiB: {most}; another: --memory",
        ]


def estimate(recipe: Recipe, ranks: int, tflops: float = A100_TFLOPS, gpu_gib: float = GPU_GIB) -> Estimate:
    """What `recipe` takes on `ranks` GPUs of `gpu_gib` GiB that sustain `tflops` each. Reads the base's config.json and
    a share of the training set, no weights. Raises BadInput where training would."""
    if tflops <= 0 or gpu_gib <= 0:
        raise BadInput(f"--tflops {tflops:g}, --memory {gpu_gib:g}: must be above 0")
    setting = _Setting.of(recipe)
    plan = plan_of(recipe, setting.dataset, setting.folder)
    steps = steps_of(recipe, plan)
    samples = min(steps * recipe.data.batch_size, plan.samples)
    row_tokens, memory = setting.memory(ranks, gpu_gib)
    (tflop, recomputed), lengths = setting.work(), setting.documents.lengths()
    # a GPU's speed counts what it does, needed or not
    seconds_per_sample = (tflop + recomputed) / (tflops * ranks)
    hours = samples * seconds_per_sample / 3600
    return Estimate(
        ranks=ranks,
        dtype=recipe.model.dtype,
        deepspeed=recipe.engine.deepspeed,
        checkpoint_blocks=recipe.model.checkpoint_blocks,
        parameters=setting.parameters,
        samples=len(setting.dataset),
        lengths=lengths,
        steps=steps,
        tokens_per_step=lengths.tokens * recipe.data.batch_size,
        tflop_per_sample=tflop,
        recomputed_per_sample=recomputed,
        row_tokens=row_tokens,
        memory=memory,
        gpu_gib=gpu_gib,
        tflops=tflops,
        tokens_per_second=lengths.tokens / seconds_per_sample,
        seconds_per_step=recipe.data.batch_size * seconds_per_sample,
        hours=hours,
        gpu_hours=hours * ranks,
    )


def work_of(recipe: Recipe) -> tuple[float, float]:
    """TFLOP of a mean sample, and how many of them are computed twice."""
    return _Setting.of(recipe).work()


@dataclass(frozen=True)
class _Setting:
    """What an estimate is made from."""

    recipe: Recipe
    folder: Path
    dataset: Corpus
    documents: Documents
    config: Any
    model: Any
    parameters: Parameters

    @classmethod
    def of(cls, recipe: Recipe) -> "_Setting":
        folder = base_folder(recipe.model)
        dataset = Corpus.open(recipe.data.train, recipe.data.mix)
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
        model = build(recipe, config, Assembly.read(folder))
        documents = Documents.read(recipe, dataset, folder)
        return cls(recipe, folder, dataset, documents, config, model, count_parameters(model, config))

    def work(self) -> tuple[float, float]:
        lengths, every = self.documents.lengths(), self.recipe.model.checkpoint_blocks
        needed = flop_per_sample(self.parameters, lengths, self.config)
        return needed / 1e12, recomputed_per_sample(self.parameters, lengths, self.config, every) / 1e12

    def memory(self, ranks: int, gpu_gib: float) -> tuple[int, dict[str, Memory]]:
        """Tokens of the largest row, and the memory with every DeepSpeed configuration."""
        recipe, documents = self.recipe, self.documents
        row, micro_batches = documents.largest_row(recipe, ranks, Cost.of_model(self.folder))
        rows = [documents.row(times * recipe.data.micro_batch_tokens, recipe.seed) for times in _ROWS]
        pixels = Pixels.of(self.folder)
        tokens = [documents.tokens(each) for each in rows]
        peaks = {
            kept: [peak(self.model, each, pixels, recipe, kept) for each in (row, *rows)] for kept in (False, True)
        }
        found = {}
        for name in sorted({recipe.engine.deepspeed, *(path.stem for path in CONFIGS.glob("*.json"))}):
            zero = self._zero(name, ranks, micro_batches)
            own, *others = peaks[zero.keeps_inputs]
            found[name] = zero.memory(own, list(zip(tokens, others, strict=True)), gpu_gib * 2**30)
        return documents.tokens(row), found

    def _zero(self, name: str, ranks: int, micro_batches: int) -> Zero:
        recipe = self.recipe
        engine, item = replace(recipe.engine, deepspeed=name), DTYPES[recipe.model.dtype].itemsize
        content = deepspeed_config(engine, recipe.optim, recipe.model.dtype, ranks)["zero_optimization"]
        return Zero(content, self.parameters, ranks, item, recipe.adapter.quantises, micro_batches)
