"""Chores: ``nox -s tests``, and likewise parity, lint, bench, nightly, sanitize and aarch64."""

import nox

nox.options.sessions = ["lint", "tests"]


@nox.session
def tests(session: nox.Session) -> None:
    """The suite on every instruction set that this machine can run."""
    session.install(".[test]")
    session.run("pytest", *session.posargs)
    names = session.run("python", "-c", "import maskattn; print(*maskattn.runnable_isas()[:-1])", silent=True)
    for isa in str(names).split():
        session.run("pytest", "-q", *session.posargs, env={"MASKATTN_ISA": isa})


@nox.session
def parity(session: nox.Session) -> None:
    """Against PyTorch and transformers; mask conventions also against JAX, ONNX and Keras."""
    session.install(".[conventions]")
    session.run("pytest", "tests/parity", *session.posargs)


@nox.session
def nightly(session: nox.Session) -> None:
    """Masks against their definition on 50,000 examples, other ones each time."""
    session.install(".[test]")
    session.run("pytest", "tests/test_mask_properties.py", *session.posargs, env={"HYPOTHESIS_PROFILE": "nightly"})


@nox.session
def lint(session: nox.Session) -> None:
    session.install(".[dev]")
    session.run("ruff", "check", ".")
    session.run("ruff", "format", "--check", ".")
    session.run("mypy")
    sources = str(session.run("git", "ls-files", "cpp/*.hpp", "cpp/*.cpp", external=True, silent=True)).split()
    session.run("clang-format", "--dry-run", "-Werror", *sources)


@nox.session
def bench(session: nox.Session) -> None:
    session.install(".[test]")
    session.run("pytest", "bench", *session.posargs)


@nox.session
def sanitize(session: nox.Session) -> None:
    """The core under AddressSanitizer and UndefinedBehaviorSanitizer."""
    session.install(".[dev]")
    session.run(".ci/sanitize", external=True)


@nox.session
def aarch64(session: nox.Session) -> None:
    """The kernels on ARM64, cross-compiled and emulated; on Debian."""
    session.install(".[dev]")
    session.run(".ci/aarch64", external=True)
