"""Why a model says what it says: evidence maps and reports."""
