"""The kinds of drafters (implementations of `osd.ports.drafter.Drafter`), and the drafters shipped with osd."""
