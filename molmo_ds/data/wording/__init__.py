"""The sentences that ask: for captions, points, tracks, and to choose among options; one is drawn per annotation."""
