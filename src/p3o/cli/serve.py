"""The command that serves rewards to runs elsewhere."""

from typing import Annotated

import typer

from p3o.cli.app import app
from p3o.errors import P3OError


@app.command("serve-reward")
def serve_reward(
    model: Annotated[
        str | None,
        typer.Argument(metavar="MODEL", help="Reward model, a sequence classifier with one label: folder or hub name."),
    ] = None,
    function: Annotated[
        str | None,
        typer.Option(
            "--function",
            metavar="MODULE:NAME",
            help="Serve a Python function of (prompts, responses) instead of a model.",
        ),
    ] = None,
    host: Annotated[
        str,
        typer.Option("--host", metavar="HOST", help="Address to listen on; by default only this machine can connect."),
    ] = ("127.0.0.1"),
    port: Annotated[
        int, typer.Option("--port", metavar="PORT", min=0, max=65535, help="Port to listen on; 0: any free port.")
    ] = 8100,
    device: Annotated[
        str, typer.Option("--device", metavar="NAME", help="Device to compute on: auto, cpu, cuda or cuda:1.")
    ] = "auto",
    batch_size: Annotated[int, typer.Option("--batch-size", min=1, metavar="N", help="Rows per forward pass.")] = 64,
    threads: Annotated[
        int, typer.Option("--threads", min=0, metavar="N", help="CPU threads of torch; 0: torch decides.")
    ] = 0,
    timeout: Annotated[
        float, typer.Option("--timeout", min=0.1, metavar="S", help="Time limit of a request, in seconds.")
    ] = (120.0),
    waiting: Annotated[
        int, typer.Option("--waiting", min=1, metavar="N", help="Maximum number of requests in progress or waiting.")
    ] = 64,
    rows: Annotated[
        int, typer.Option("--rows", min=1, metavar="N", help="Maximum number of responses in a request.")
    ] = 4096,
    api_key_env: Annotated[
        str | None,
        typer.Option(
            "--api-key-env", metavar="NAME", help="Environment variable with the key that requests must send."
        ),
    ] = None,
    trust_remote_code: Annotated[
        bool, typer.Option("--trust-remote-code", help="Allow Python code in the model's repository to run.")
    ] = False,
) -> None:
    """Serve a reward model or reward function over HTTP; other runs use it through reward.service.url or --reward-url."""
    if (model is None) == (function is None):
        raise P3OError("give either a reward model or --function MODULE:NAME")
    try:
        import fastapi  # noqa: F401
        import uvicorn  # noqa: F401
    except ModuleNotFoundError as error:
        raise P3OError(f"serve-reward needs the package {error.name!r}; run: pip install 'p3o[serve]'") from error
    from p3o.feedback.http import read_key
    from p3o.feedback.listening import address_of, is_loopback, listen, serve_app
    from p3o.feedback.remote.server import Limits, function_score, make_app, model_score
    from p3o.stages.context import choose_device

    key = "" if api_key_env is None else read_key(api_key_env)
    if api_key_env is not None and not key:
        raise P3OError(f"--api-key-env: the environment variable {api_key_env} is not set; put the key there")
    if function is not None:
        score = function_score(function)
    else:
        assert model is not None
        score = model_score(
            model, device=choose_device(device), batch_size=batch_size, trust_remote_code=trust_remote_code
        )
    listening = listen(host, port)
    if not is_loopback(listening) and not key:
        typer.echo(
            "warning: other machines can reach this server and it asks for no key; give --api-key-env, and put it "
            "behind a proxy with TLS",
            err=True,
        )
    name = model or function or ""
    application = make_app(
        score, name=name, limits=Limits(rows=rows, waiting=waiting, timeout=timeout), key=key, threads=threads
    )
    address = address_of(listening)
    serve_app(application, listening, ready=lambda: typer.echo(f"serving {name} at {address}; stop with Ctrl-C"))
