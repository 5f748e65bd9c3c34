"""The list of mutations fits the code that it breaks."""

from mutations import listed, occurrences


def test_what_a_mutation_replaces_stands_in_its_file_once():
    found = {(mutation.file, mutation.old): occurrences(mutation) for mutation in listed()}
    assert {place: number for place, number in found.items() if number != 1} == {}


def test_no_mutation_is_listed_twice_or_changes_nothing():
    listing = listed()
    assert len({(file, old, new) for file, old, new, _ in listing}) == len(listing)
    assert all(mutation.old != mutation.new for mutation in listing)
