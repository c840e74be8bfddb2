"""How good an ensemble is, and how fair."""

from ddm_fed.evaluation.classifier import Classifier as Classifier
from ddm_fed.evaluation.classifier import TrainedClassifier as TrainedClassifier
from ddm_fed.evaluation.classifier import train_classifier_on as train_classifier_on
from ddm_fed.evaluation.fidelity import Manifold as Manifold
from ddm_fed.evaluation.fidelity import frechet_distance as frechet_distance
from ddm_fed.evaluation.fidelity import kernel_distance as kernel_distance
from ddm_fed.evaluation.fidelity import manifold_scores as manifold_scores
from ddm_fed.evaluation.shares import ShareError as ShareError
from ddm_fed.evaluation.shares import site_share_error as site_share_error
