"""The commands of `hopscope.cli`, by what they ask about, and the options that they share."""
