"""Names of columns that are well known, so that nobody has to say which column is what."""

# Folded; of several, the earliest counts.
TEXTS = (
    *("text", "sentence", "review", "content", "document", "body", "message", "comment", "tweet", "utterance"),
    *("review_text", "comment_text", "review_body", "text_content", "reviewtext", "full_text", "article", "abstract"),
    *("description", "post", "query", "question", "headline", "title", "input"),
)
PAIRS = (
    *(("text_a", "text_b"), ("text1", "text2"), ("text_1", "text_2"), ("sentence1", "sentence2")),
    *(("sentence_1", "sentence_2"), ("sentence_a", "sentence_b"), ("premise", "hypothesis")),
    *(("question1", "question2"), ("question", "sentence"), ("question", "passage"), ("query", "passage")),
    *(("query", "document"), ("question", "answer")),
)
LABELS = (
    *("label", "labels", "class", "category", "sentiment", "target", "gold_label", "polarity", "topic", "intent"),
    *("emotion", "rating", "stars", "score", "tag", "tags", "class_name", "label_text", "airline_sentiment", "y"),
)
IDS = ("", "index", "idx", "id", "unnamed:_0", "guid", "uid", "uuid", "row", "row_id", "no", "nr", "#", "pairid")


# Of texts that belong together, to train embeddings on, beside PAIRS; of several, the earliest counts. They are not
# among the above, where a title with a text would become a pair of every labelled file that has both.
TRIPLETS = (
    *(("anchor", "positive", "negative"), ("query", "positive", "negative"), ("query", "pos", "neg")),
    *(("question", "positive", "negative"), ("sent0", "sent1", "hard_neg")),
)
MATCHES = (
    *(("anchor", "positive"), ("query", "positive"), ("query", "pos"), ("question", "positive"), ("query", "answer")),
    *(("query", "text"), ("question", "context"), ("title", "text"), ("title", "body"), ("title", "abstract")),
    *(("title", "content"), ("sent0", "sent1")),
)
# How alike two texts are.
SCORES = ("score", "similarity", "similarity_score", "relatedness", "relatedness_score", "label", "labels")

# Of tagging: words, and their tags.
TOKENS = ("tokens", "words", "token", "word", "form", "forms")
TOKEN_TAGS = (
    *("tags", "ner_tags", "ner", "labels", "label", "pos_tags", "upos", "pos", "tag", "xpos"),
    *("ner_tag", "pos_tag", "upos_tags", "bio_tags", "iob_tags", "bio", "iob", "chunk_tags"),
)

KNOWN = {*TEXTS, *LABELS, *(name for pair in PAIRS for name in pair)}


def fold(name: str) -> str:
    """Returns a column's name in the form in which names are compared.

    Example:
    >>> fold(" Review-Text ")
    'review_text'
    """
    return name.strip().casefold().replace(" ", "_").replace("-", "_")
