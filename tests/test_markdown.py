from mm_lightning.markdown import markdown_table


def test_words_stand_on_the_left_and_numbers_on_the_right():
    text = markdown_table(["network", "kind", "loss"], [["v2", "mosaic", "3.1"], ["t", "transformer", "4.0"]], 2)
    assert text.splitlines() == [
        "| network | kind | loss |",
        "| --- | --- | ---: |",
        "| v2 | mosaic | 3.1 |",
        "| t | transformer | 4.0 |",
    ]
