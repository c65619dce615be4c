"""A TensorFlow Datasets data set of the tests' own; it needs no network."""

import tensorflow_datasets as tfds


class CatsAndDogs(tfds.core.GeneratorBasedBuilder):
    """Sentences about cats, and about dogs."""

    VERSION = tfds.core.Version("1.0.0")

    def _info(self):
        features = dict(sentence=tfds.features.Text(), label=tfds.features.ClassLabel(names=["dog", "cat"]))
        return self.dataset_info_from_configs(features=tfds.features.FeaturesDict(features))

    def _split_generators(self, dl_manager):
        return dict(train=self._generate_examples(6), validation=self._generate_examples(2))

    def _generate_examples(self, number):
        for i in range(number):
            yield i, dict(sentence="the cat" if i % 2 else "the dog", label=i % 2)
