"""ImageNet's class names: complete, ordered, and only put in the place of synset ids."""

from data.class_names import imagenet_classes, readable


def test_a_thousand_classes_in_label_order():
    classes = imagenet_classes()
    assert len(classes) == 1000
    assert list(classes) == sorted(classes)  # label order is the order of the ids
    assert all(words for words in classes.values())


def test_known_labels_of_published_checkpoints():
    names = list(imagenet_classes().values())
    assert names[0] == "tench, Tinca tinca"
    assert names[207] == "golden retriever"
    assert names[388].startswith("giant panda")
    assert names[999].startswith("toilet tissue")


def test_readable_replaces_synset_ids_alone():
    assert readable(["n02099601", "cat"]) == ("golden retriever", "cat")
    assert readable([]) == ()
