"""`mimicry report`: what a study says, as a page, tables and a pack for raters. No torch."""
