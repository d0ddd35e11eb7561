"""Progress in a terminal: one live line for a phase, which leaves a line behind when the phase ends."""

from __future__ import annotations

from rich.console import Console, ConsoleOptions, RenderResult
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.text import Text

from csdn.console.work import Work, duration

TITLE = 12  # columns of a phase's name
BAR = 24  # columns of the bar, at most


class Terminal:
    """The live line is redrawn by a thread, so it moves while a long step computes."""

    def __init__(self) -> None:
        self.console = Console(stderr=True, highlight=False)

    def start(self, work: Work) -> None:
        # Nothing is redirected: processes of the feed are forked while the thread may hold rich's locks.
        self.live = Live(
            LiveLine(work),
            console=self.console,
            transient=True,
            refresh_per_second=8,
            redirect_stdout=False,
            redirect_stderr=False,
        )
        self.live.start()
        self.console.show_cursor(True)  # which a killed stage would leave hidden

    def update(self, work: Work) -> None:
        """Nothing to do: the line looks at `work` when it is drawn."""

    def note(self, work: Work, text: str) -> None:
        self.console.print(Text(f"  {work.phase:{TITLE}} {text}"))

    def end(self, work: Work, failure: str | None) -> None:
        self.live.stop()
        line = Text("✗ " if failure else "✓ ", style="red" if failure else "green")
        line.append(ended(work, failure), style="default")
        self.console.print(line, no_wrap=True, overflow="ellipsis", crop=True)


class LiveLine:
    """The line as it is at the moment of drawing; the bar takes the room that is left."""

    def __init__(self, work: Work) -> None:
        self.work = work

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        work, width = self.work, options.max_width - 1
        title, about = f"  {work.phase:{TITLE}} ", f" {underway(work)}"
        bar = min(BAR, width - len(title) - len(about))
        yield Text(title[:width], end="")
        if bar >= 4:
            yield ProgressBar(total=work.total, completed=work.done, width=bar, pulse=work.total is None)
        yield Text(about[: max(0, width - len(title))], no_wrap=True)


def underway(work: Work) -> str:
    """What stands behind the bar: count, speed, figures, time left."""
    if work.total is None:
        return duration(work.seconds)
    return "  ".join(filter(None, (work.count(), work.speed(), work.figures(), work.left())))


def ended(work: Work, failure: str | None) -> str:
    """The line that stays: what, how many, how long, how fast, with which figures."""
    if failure:
        count = f"stopped at {work.count()}" if work.total else "stopped"
        return f"{work.phase:{TITLE}} {count} after {duration(work.seconds)}"
    if work.total is None:
        return f"{work.phase:{TITLE}} nothing left to do"
    count = f"{work.done} {work.unit}"
    columns = f"{count:>14}  {duration(work.seconds):>8}  {work.speed():>14}  {work.figures()}"
    return f"{work.phase:{TITLE}} {columns}".rstrip()
