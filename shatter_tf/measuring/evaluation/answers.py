"""Models of answers, on files in SQuAD's format: exact match and F1 by Model Garden's copies of SQuAD's scripts."""

import dataclasses

import numpy as np

from shatter_tf.data.question_answering import Question, answer_scores, read_squad
from shatter_tf.measuring.evaluation.kind import Kind, register
from shatter_tf.measuring.evaluation.report import MISTAKES, Report


@dataclasses.dataclass
class Asked:
    """A question with its context."""

    question: Question
    context: str
    where: str

    @property
    def texts(self) -> tuple[str, str]:
        return self.question.text, self.context


@register("answer", "start", "end", "score")
class Answers(Kind):
    """A part of the context that answers the question, or none."""

    def read(self, source):
        squad = read_squad(source.path)
        rows = [Asked(q, squad.contexts[q.context], f"{source.path}, question {q.id!r}") for q in squad.questions]
        none = sum(not question.answers for question in squad.questions)
        return rows, f"{source.path}: {len(rows):,} questions, of which {none:,} have no answer"

    def columns(self, source, rows):
        return [
            dict(id=row.question.id, question=row.question.text, context=row.context, answers=[*row.question.answers])
            for row in rows
        ]

    def judge(self, rows, outputs):
        questions = [row.question for row in rows]
        answers = {q.id: output["answer"].decode() for q, output in zip(questions, outputs, strict=True)}
        some_unanswerable = not all(question.answers for question in questions)
        report = Report(answer_scores(questions, answers, some_unanswerable))
        found = report.figures
        report.lines.append(f"exact match {found['exact_match']:.4f}  F1 {found['f1']:.4f}  of {len(rows):,} questions")

        each = [answer_scores([q], {q.id: answers[q.id]}, some_unanswerable)["f1"] for q in questions]
        sure = np.array([output["score"] for output in outputs])
        wrong = [i for i in np.argsort(-sure, kind="stable") if not each[i]][:MISTAKES]

        def right_answers(question: Question) -> str:
            return " or ".join(map(repr, dict.fromkeys(question.answers))) or "none"

        report.add_mistakes(
            "surest wrong answers",
            (
                dict(
                    said=f"{answers[questions[i].id]!r}, not {right_answers(questions[i])}",
                    where=rows[i].where,
                    text=questions[i].text,
                    answers=[*questions[i].answers],
                    predicted=answers[questions[i].id],
                    score=float(sure[i]),
                )
                for i in wrong
            ),
        )
        return report
