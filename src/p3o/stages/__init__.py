"""The stages of a run, one file each: every one reads what the earlier ones left in the run folder."""
