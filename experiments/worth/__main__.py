"""Do the next units of the plan of ``experiments/worth.md`` for some hours, or show what came out."""

from experiments.claims.__main__ import command
from experiments.worth.plan import QUESTIONS, plan

main = command("worth", plan, QUESTIONS)

if __name__ == "__main__":
    main()
