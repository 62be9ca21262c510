"""The pool side: takes the reports of the workers, stores them, answers questions."""
