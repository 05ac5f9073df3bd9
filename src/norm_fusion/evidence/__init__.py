"""What records prove: processes pooled, claims judged by a versioned rule, runs compared. Paper tower: no torch."""
