"""The chest that is drawn: body, lungs, vessels and airways, in mm, without any nodule."""
