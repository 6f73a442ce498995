"""What belongs on the Hub beside the files of a model: cards made from what was measured."""
