"""Analytics: who visited the web site, day by day, and plots of it. A plot is only the name of its file."""

from collections import defaultdict

from nemo_cascade.environments.workplace_assistant.search import Refused

COLUMNS = ("date_of_visit", "visitor_id", "page_views", "session_duration_seconds", "traffic_source", "user_engaged")
PLOT_COLUMNS = ("file_path",)
SOURCES = ("direct", "referral", "search engine", "social media")
VALUES = ("total_visits", "session_duration_seconds", "user_engaged") + tuple(
    f"visits_{source.replace(' ', '_')}" for source in SOURCES
)
PLOTS = ("bar", "line", "scatter", "histogram")


def get_visitor_information_by_id(office, /, visitor_id=None):
    if not visitor_id:
        raise Refused("Which visitor? visitor_id is missing.")
    found = [row for row in office.visits if row["visitor_id"] == visitor_id]
    if not found:
        raise Refused("Nobody of that visitor_id came.")
    return found


def create_plot(office, /, time_min=None, time_max=None, value_to_plot=None, plot_type=None):
    if not time_min:
        raise Refused("From which day? time_min is missing.")
    if not time_max:
        raise Refused("Up to which day? time_max is missing.")
    if value_to_plot not in VALUES:
        raise Refused(f"value_to_plot must be one of {', '.join(VALUES)}.")
    if plot_type not in PLOTS:
        raise Refused(f"plot_type must be one of {', '.join(PLOTS)}.")
    path = f"plots/{time_min}_{time_max}_{value_to_plot}_{plot_type}.png"
    office.plots.add(file_path=path)
    return path


def total_visits_count(office, /, time_min=None, time_max=None):
    return {day: len(rows) for day, rows in by_day(office, time_min, time_max)}


def engaged_users_count(office, /, time_min=None, time_max=None):
    return {day: sum(row["user_engaged"] for row in rows) for day, rows in by_day(office, time_min, time_max)}


def traffic_source_count(office, /, time_min=None, time_max=None, traffic_source=None):
    return {
        day: sum(not traffic_source or row["traffic_source"] == traffic_source for row in rows)
        for day, rows in by_day(office, time_min, time_max)
    }


def get_average_session_duration(office, /, time_min=None, time_max=None):
    return {
        day: sum(float(row["session_duration_seconds"]) for row in rows) / len(rows)
        for day, rows in by_day(office, time_min, time_max)
    }


def by_day(office, time_min, time_max) -> list[tuple[str, list]]:
    """(day, its visits) in the order of days. Days are compared as texts, both bounds included."""
    days = defaultdict(list)
    for row in office.visits:
        day = row["date_of_visit"]
        if (not time_min or day >= time_min) and (not time_max or day <= time_max):
            days[day].append(row)
    return sorted(days.items())


TOOLS = {
    "analytics_get_visitor_information_by_id": get_visitor_information_by_id,
    "analytics_create_plot": create_plot,
    "analytics_total_visits_count": total_visits_count,
    "analytics_engaged_users_count": engaged_users_count,
    "analytics_traffic_source_count": traffic_source_count,
    "analytics_get_average_session_duration": get_average_session_duration,
}
