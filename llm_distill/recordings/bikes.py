"A SQLite database of bike rentals, and what a query on it is worth"
# `--check llm_distill/recordings/bikes.py:runs` and `--metric llm_distill/recordings/bikes.py:same_rows` belong to the
# recording `sql.jsonl`. The database is made from a fixed random seed, can only be read, and stops a query that takes
# too long.
import random, sqlite3
from functools import lru_cache

schema = '''
CREATE TABLE members (id INTEGER PRIMARY KEY, name TEXT, city TEXT, plan TEXT, joined DATE);
CREATE TABLE stations (id INTEGER PRIMARY KEY, name TEXT, district TEXT, capacity INTEGER);
CREATE TABLE bikes (id INTEGER PRIMARY KEY, kind TEXT, bought DATE, status TEXT,
                    station_id INTEGER REFERENCES stations(id));
CREATE TABLE rides (id INTEGER PRIMARY KEY, member_id INTEGER REFERENCES members(id),
                    bike_id INTEGER REFERENCES bikes(id), start_station INTEGER REFERENCES stations(id),
                    end_station INTEGER REFERENCES stations(id), started DATETIME, minutes INTEGER, price REAL);
'''
first_names = 'Ada Bo Carl Dina Eva Finn Gro Hans Ida Jon Kari Lars Mona Nils Ole Pia Rolf Siri Tor Una'.split()
last_names = 'Berg Dahl Eide Foss Haug Lie Moen Ness Rud Vik'.split()
stations = [
    ('Central', 'Old Town', 30), ('Fish Market', 'Harbor', 20), ('Ferry Quay', 'Harbor', 16),
    ('Campus', 'University', 40), ('Library', 'University', 12), ('Stadium', 'West', 25), ('Hospital', 'West', 18),
    ('Hilltop', 'North', 8), ('Aquarium', 'North', 14), ('Theatre', 'Old Town', 22)]
durations = [3, 5, 8, 12, 15, 18, 22, 25, 31, 40, 55, 62, 75, 95, 130] # minutes of a ride


def draw_date(rng, first_year, last_year):
    "Draw a date in ISO format."
    return f'{rng.randint(first_year, last_year)}-{rng.randint(1, 12):02d}-{rng.randint(1, 28):02d}'


def draw_member(rng):
    "Draw name, city, plan and date of joining."
    name = f'{rng.choice(first_names)} {rng.choice(last_names)}'
    city = rng.choice(['Bergen', 'Bergen', 'Oslo', 'Voss'])
    plan = rng.choice(['basic', 'basic', 'plus', 'student'])
    return name, city, plan, draw_date(rng, 2021, 2025)


def draw_bike(rng):
    "Draw kind, date of purchase, status and station; some bikes have none."
    kind = rng.choice(['city', 'city', 'cargo', 'electric'])
    bought = draw_date(rng, 2019, 2025)
    status = rng.choice(['ok', 'ok', 'ok', 'broken', 'lost'])
    return kind, bought, status, rng.choice([None, *range(1, 10)])


def draw_ride(rng):
    "Draw member, bike, both stations, start, minutes and price."
    minutes = rng.choice(durations)
    member, bike, start, end = rng.randint(1, 37), rng.randint(1, 33), rng.randint(1, 9), rng.randint(1, 9)
    year = rng.choice([2023, 2024, 2024, 2025])
    day = f'{year}-{rng.randint(1, 12):02d}-{rng.randint(1, 28):02d}'
    started = f'{day} {rng.randint(5, 23):02d}:{rng.randint(0, 59):02d}:00'
    return member, bike, start, end, started, minutes, round(1 + minutes*rng.choice([.1, .15, .2]), 2)


def allow_reading(action, *details):
    "Allow a statement to read, and nothing else."
    reading = sqlite3.SQLITE_SELECT, sqlite3.SQLITE_READ, sqlite3.SQLITE_FUNCTION, sqlite3.SQLITE_RECURSIVE
    return sqlite3.SQLITE_OK if action in reading else sqlite3.SQLITE_DENY


@lru_cache(1)
def open_database() -> sqlite3.Connection:
    "Make the database in memory."
    database = sqlite3.connect(':memory:', check_same_thread=False)
    database.executescript(schema)
    rng = random.Random(7)
    tables = dict(members=(draw_member, 40), bikes=(draw_bike, 35), rides=(draw_ride, 700))
    rows = {name: [(i, *draw(rng)) for i in range(1, n + 1)] for name, (draw, n) in tables.items()}
    rows['stations'] = [(i, *station) for i, station in enumerate(stations, 1)]
    for name, values in rows.items():
        marks = ', '.join('?'*len(values[0]))
        database.executemany(f'INSERT INTO {name} VALUES ({marks})', values)
    database.commit()
    database.set_authorizer(allow_reading)
    return database


def query(
    sql: str, # one SELECT statement, with or without a semicolon
) -> list[tuple]:
    "Return the first 1,000 rows of a query. Raise `sqlite3.Error` if it is invalid, changes anything or takes too long."
    database, steps = open_database(), iter(range(200))
    database.set_progress_handler(lambda: next(steps, None) is None, 100_000)
    cursor = database.execute(sql.strip().rstrip(';'))
    if cursor.description is None: raise sqlite3.ProgrammingError('it is not a query')
    return cursor.fetchmany(1000)


def runs(
    question: str, # not used
    answer: str,   # a query
) -> str | None: # the reason to reject the answer
    "Check that an answer is a query that runs."
    try:
        query(answer)
    except (sqlite3.Error, sqlite3.Warning) as e:
        return f'SQLite says: {e}'


def normalize_rows(rows, ordered):
    "Round numbers, and sort rows whose order does not matter."
    rounded = [tuple(round(value, 4) if isinstance(value, float) else value for value in row) for row in rows]
    return rounded if ordered else sorted(rounded, key=repr)


def same_rows(
    prediction: str, # a query
    reference: str,  # the teacher's query
) -> bool:
    "Compare the rows of two queries, in their order if the reference has ORDER BY (execution accuracy)."
    try:
        rows = query(prediction)
    except (sqlite3.Error, sqlite3.Warning, ValueError):
        return False
    ordered = 'order by' in reference.lower()
    return normalize_rows(rows, ordered) == normalize_rows(query(reference), ordered)
