"""Answers in other languages than English: right ones count, and what denies, bounds or multiplies is understood."""

from __future__ import annotations

import pytest

from hf_mass.tasks.task import Task
from hf_mass.tasks.verifiers import get_verifier

RIGHT = [
    *("Die Antwort ist 18.", "La réponse est 18.", "Réponse : 18", "Antwort: 18", "La risposta è 18.", "Ответ: 18."),
    *("Es sind nicht 20, sondern \\boxed{18}.", "No es 20 sino \\boxed{18}.", "这不是奇数，所以答案是\\boxed{18}"),
    *("答案是18。", "答案：18", "答：18个", "答案是18个苹果。", "18元", "18 개", "答えは18です。", "정답은 18입니다."),
    *("The number of non-negative integers is 18", "R$ 18", "18pct"),
]
WRONG = [
    *(
        "Die Antwort ist nicht 18.",
        "18 ist falsch",
        "La réponse n'est pas 18.",
        "18 est faux",
        "La respuesta no es 18.",
    ),
    *("A resposta não é 18.", "Ответ не 18.", "答案不是18。", "错误答案是18", "答案是18吗？", "18は正しくない"),
    *("mehr als 18", "mindestens 18", "au moins 18", "plus de 18", "más de 18", "al menos 18", "больше 18", "大于18"),
    *("18 Millionen", "18 Mio.", "18 Tausend", "18 millones", "18 mil", "18 mille", "18 тысяч", "18 млн"),
    *("18万", "18万人民币", "18分之一", "18个半", "18倍", "18以上", "18분의 1"),
]


@pytest.mark.parametrize("text", RIGHT)
def test_right_answers(text: str) -> None:
    assert get_verifier("numeric")(Task("p", answer="18"), text) == 1.0


@pytest.mark.parametrize("text", WRONG)
def test_wrong_answers(text: str) -> None:
    assert get_verifier("numeric")(Task("p", answer="18"), text) == 0.0


@pytest.mark.parametrize(
    ("text", "right"),
    [
        *(("Die richtige Antwort ist B.", 1.0), ("Antwort: B", 1.0), ("La respuesta correcta es B.", 1.0)),
        *(("答案是B。", 1.0), ("正确答案是 **B**。", 1.0)),
        *(("Die Antwort ist nicht B.", 0.0), ("La respuesta no es B.", 0.0), ("B ist falsch.", 0.0)),
        *(("答案不是B", 0.0), ("答案是A或B", 0.0)),
    ],
)
def test_letters(text: str, right: float) -> None:
    assert get_verifier("multiple_choice")(Task("p", answer="B"), text) == right


@pytest.mark.parametrize("text", ["日本。", "答案是日本。", "「日本」", "答案：日本\n\n因为……"])
def test_words(text: str) -> None:
    assert get_verifier("exact_match")(Task("p", answer="日本"), text) == 1.0
