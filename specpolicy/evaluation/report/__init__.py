"""One self-contained page about the results of ``specpolicy rollout`` or ``specpolicy evaluate``.

A results folder is read (``results``), the fastest samplers are chosen and cautions collected (``recommendation``),
figures are drawn (``figures``), and everything is put into templates (``page``). Nothing that a folder holds is
executed: names in it are compared with our own, never imported.
"""

from specpolicy.evaluation.report.page import write_report as write_report
from specpolicy.evaluation.report.recommendation import recommend as recommend
from specpolicy.evaluation.report.results import ReportError as ReportError
from specpolicy.evaluation.report.results import ReportSettings as ReportSettings
from specpolicy.evaluation.report.results import TaskResults as TaskResults
from specpolicy.evaluation.report.results import read_folder as read_folder
