"""One self-contained page about the results of ``specpolicy rollout`` or ``specpolicy evaluate``.

A results folder is read (``results``); what follows from it is computed (``verdict``, ``cautions``), tabled
(``table``), drawn (``figures``) and filmed (``videos``); and everything is put into templates (``page``). Nothing on
the page is written by hand.
"""

from specpolicy.evaluation.report.page import write_report as write_report
from specpolicy.evaluation.report.recommendation import Recommendation as Recommendation
from specpolicy.evaluation.report.recommendation import recommend as recommend
from specpolicy.evaluation.report.results import ReportError as ReportError
from specpolicy.evaluation.report.results import ReportSettings as ReportSettings
from specpolicy.evaluation.report.results import TaskResults as TaskResults
from specpolicy.evaluation.report.results import read_folder as read_folder
