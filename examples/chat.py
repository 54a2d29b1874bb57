"""Talk to a model: a stage's checkpoint, a Hugging Face folder, or whatever answers at an OpenAI-compatible endpoint.

python examples/chat.py runs/tiny/02-sft/step_1300
python examples/chat.py /models/nano --tools python --budget 4096
python examples/chat.py --endpoint http://localhost:8000/v1
"""

import typer

from nemo_cascade.chat.terminal import chat

if __name__ == "__main__":
    app = typer.Typer(pretty_exceptions_enable=False, add_completion=False, rich_markup_mode=None)
    app.command()(chat)
    app()
