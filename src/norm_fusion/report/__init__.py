"""What a person sees of a run: the joined rows, the one-sentence answer, the terminal table and the page. No torch."""
