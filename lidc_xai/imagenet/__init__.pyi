from .class_names import ClassNames as ClassNames
from .classifier import Classifier as Classifier
from .classifier import load_classifier as load_classifier
from .photo_maps import ExplainedImages as ExplainedImages
from .photo_maps import explain_images as explain_images
from .photographs import Photo as Photo
from .photographs import read_photo as read_photo
