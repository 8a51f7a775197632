"""Images and text into what an assembled model takes, outside of training: in a notebook, a service, a test."""

from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from shards.errors import BadInput
from shards.sample import ImagePart, Message, Sample, Text
from vlm.data.documents import IGNORE
from vlm.data.images import Pixels
from vlm.data.pieces import DialogueEncoder
from vlm.data.template import IMAGE, load_template
from vlm.model.assemble import Assembly
from vlm.model.load import load_tokenizer

Picture = bytes | Path | str | Image.Image


class LLaVADataProcessor:
    """Turns images and text into tensors, the very ones that training and evaluation use.

    `folder` is an assembled model (`vlm assemble`), `template` a chat template other than the model's. The output
    goes into the model as it is:

    >>> processor = LLaVADataProcessor("models/llava-saiga")
    >>> inputs = processor("Что на картинке?", ["cat.jpg"])
    >>> answer = model.generate(**inputs, max_new_tokens=32)
    """

    def __init__(self, folder: Path | str, template: str = "") -> None:
        folder = Path(folder)
        assembly = Assembly.read(folder)
        self.tokenizer = load_tokenizer(folder)
        self.pixels = Pixels.of(folder)
        chat = load_template(template or assembly.template)
        self.encoder = DialogueEncoder(self.tokenizer, chat, assembly.image_tokens)

    def __call__(self, text: str | Sequence[Message] | Sample, images: Sequence[Picture] = ()) -> dict[str, Tensor]:
        """Tensors of one dialogue of L tokens and its images.

        `text` is a question (the images stand before it), messages, or a sample with its own image. Images are the
        bytes, the path or a PIL image each, one for every place that the messages give one.

        Returns `input_ids` and `attention_mask`, int64 (1, L), every image as many `<image>` tokens as it has
        patches; `pixel_values`, float32 (n, 3, size, size), n the number of images or, with tiles, of their views,
        absent without images; `labels`, int64 (1, L), where the dialogue ends with an answer: the token itself
        inside the assistant's answers, -100 elsewhere (transformers shifts them). A dialogue that ends with a
        question is a prompt and has none.

        Raises BadInput for bytes that are no image, for a number of images other than the messages name, and for
        text that holds `<image>`.
        """
        messages, pictures = self._dialogue(text, images)
        views = [self._views(picture) for picture in pictures]
        places = sum(isinstance(part, ImagePart) for message in messages for part in message.content)
        if places != len(views):
            raise BadInput(f"the messages name {places} images and {len(views)} are given")
        if any(len(v) != len(views[0]) for v in views):
            raise BadInput("images of one dialogue must have the same number of tiles; give them one by one")
        prompt = messages[-1].role != "assistant"
        ids, supervised = self.encoder.encode(messages, prompt, len(views[0]) if views else 1)
        if ids.count(self.encoder.image_id) != self.encoder.image_tokens * sum(map(len, views)):
            raise BadInput(f"the text holds {IMAGE}, which stands for an image; write it in another way")
        tensors = {"input_ids": torch.tensor([ids]), "attention_mask": torch.ones(1, len(ids), dtype=torch.int64)}
        if views:
            tensors["pixel_values"] = self.pixels.normalise(torch.cat(views), torch.float32)
        if not prompt:
            labels = [token if flag else IGNORE for token, flag in zip(ids, supervised, strict=True)]
            tensors["labels"] = torch.tensor([labels])
        return tensors

    def _dialogue(
        self, text: str | Sequence[Message] | Sample, images: Sequence[Picture]
    ) -> tuple[Sequence[Message], Sequence[Picture]]:
        if isinstance(text, Sample):
            if images:
                raise BadInput("a sample has its own image; give no others")
            return text.messages, () if text.image is None else (text.image,)
        if isinstance(text, str):
            return [Message("user", (*(ImagePart() for _ in images), Text(text)))], images
        if not text:
            raise BadInput("at least one message is wanted")
        return text, images

    def _views(self, picture: Picture) -> Tensor:
        """uint8 (n, 3, size, size) of one image."""
        if isinstance(picture, str | Path):
            path = Path(picture)
            try:
                picture = path.read_bytes()
            except OSError as error:
                raise BadInput(f"{path}: cannot be read ({error.strerror})") from error
        views = self.pixels.views(picture)
        return torch.from_numpy(views.copy())
