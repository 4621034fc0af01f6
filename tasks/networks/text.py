"""Text classifiers. They take token ids (N, L), int32 or int64, filled up with 0 at the end; 0 is padding."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from assay.tasks.errors import UnsupportedModel

TextShape = tuple[int]  # the number L of tokens
_WIDTH = 300  # of the word vectors (Kim 2014, section 3.1)
_CPU_HAS_BF16 = bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())  # from AVX-512 on


class TextCNN(nn.Module):
    """Kim's convolutional network (2014): 300 V + 362,106 parameters for V words and 6 classes.

    CNN-rand of that paper: word vectors of 300 drawn at random, 100 filters each over 3, 4 and 5 words, maximum over
    time, dropout 0.5. Its limit on the norm of the last layer's rows is left out. The greedy-residuals paper cites it
    without numbers, and its public code has no text model.
    """

    def __init__(self, shape: TextShape, classes: int, vocabulary: int) -> None:
        super().__init__()
        if shape[0] < 5:
            raise UnsupportedModel(f"textcnn needs texts of at least 5 tokens, got {shape[0]}")
        self.embedding = nn.Embedding(vocabulary, _WIDTH, padding_idx=0)
        self.conv3 = nn.Conv1d(_WIDTH, 100, 3)
        self.conv4 = nn.Conv1d(_WIDTH, 100, 4)
        self.conv5 = nn.Conv1d(_WIDTH, 100, 5)
        self.dropout = nn.Dropout(0.5)
        self.fc = nn.Linear(300, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits (N, K)."""
        words = self.embedding(x).transpose(1, 2)
        # ReLU commutes with the maximum; after it, there is one value per filter left.
        found = [F.relu(conv(words).amax(2)) for conv in (self.conv3, self.conv4, self.conv5)]
        return self.fc(self.dropout(torch.cat(found, 1)))


class LSTM(nn.Module):
    """One LSTM layer of 256 units on word vectors of 300: 300 V + 572,934 parameters for V words and 6 classes.

    Reads from left to right and classifies the state after the last word, with dropout 0.5 on word vectors and state;
    padding changes nothing. The greedy-residuals paper cites Hochreiter and Schmidhuber (1997) without numbers.
    """

    positions: Tensor

    def __init__(self, shape: TextShape, classes: int, vocabulary: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, _WIDTH, padding_idx=0)
        self.dropout = nn.Dropout(0.5)
        self.lstm = nn.LSTM(_WIDTH, 256, batch_first=True)
        self.fc = nn.Linear(256, classes)
        self.register_buffer("positions", torch.arange(shape[0]), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits (N, K)."""
        words = self.dropout(self.embedding(x))
        # Other processors have no recurrent kernel for bf16 and would raise: there this layer stays in float32.
        with torch.autocast("cpu", torch.bfloat16, enabled=_CPU_HAS_BF16 and torch.is_autocast_enabled("cpu")):
            states = self.lstm(words)[0]
        last = ((x != 0) * self.positions).amax(1)
        state = states.gather(1, last.view(-1, 1, 1).expand(-1, 1, 256)).squeeze(1)
        return self.fc(self.dropout(state))
