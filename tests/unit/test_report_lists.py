"""Which queries the report shows: by rule, never by hand."""

from csdn.report.images import by_direction, hardest, nearest_wrong, spread_out


def query(key, person, rank, ap=50.0, first="right"):
    return {
        "key": key,
        "person": person,
        "first_rank": rank,
        "ap": ap,
        "top_keys": [first],
        "direction": "a_to_b",
    }


def test_lists_run_evenly_from_the_best_query_to_the_worst():
    rows = [{"key": f"{n:03d}", "ap": float(n)} for n in range(101)]
    assert [row["ap"] for row in spread_out(rows, 5)] == [100.0, 75.0, 50.0, 25.0, 0.0]
    assert len(spread_out(rows[:3], 5)) == 3
    assert spread_out([], 5) == []


def test_queries_without_a_right_image_are_in_no_list():
    rows = [query("1", "anna", 3), query("2", "ben", None, None)]
    assert by_direction(rows) == {"a_to_b": rows[:1]}
    assert by_direction(rows[1:]) == {"a_to_b": []}


def test_hardest_failures_rank_lowest_and_are_one_of_each_person():
    rows = [
        query("1", "anna", 40, 3.0),
        query("2", "anna", 90, 2.0),
        query("3", "ben", 90, 1.0),
        query("4", "carl", 7),
        query("5", "dora", 1),
    ]
    assert [row["key"] for row in hardest(rows, 5)] == ["3", "2", "4"]  # equal ranks: the lower AP first
    assert [row["key"] for row in hardest(rows, 1)] == ["3"]


def test_confusions_are_the_nearest_wrong_first_answers_two_people_once():
    person = {"A1": "anna", "B1": "ben", "B2": "ben", "C1": "carl"}.get
    distance = {("a", "B1"): 0.3, ("b", "A1"): 0.2, ("c", "B2"): 0.1, ("d", "C1"): 0.0}
    rows = [
        query("a", "anna", 2, first="B1"),
        query("b", "ben", 9, first="A1"),  # anna and ben again, nearer
        query("c", "carl", 2, first="B2"),
        query("d", "carl", 1, first="C1"),  # right
    ]
    found = nearest_wrong(rows, 5, person, lambda *keys: distance[keys])
    assert [row["key"] for row in found] == ["c", "b"]
    assert len(nearest_wrong(rows, 1, person, lambda *keys: distance[keys])) == 1
