"""One self-contained page about the results of ``specpolicy rollout`` or ``specpolicy evaluate``.

A results folder is read (``results``); what follows from it is computed (``verdict``, ``cautions``), tabled
(``table``), drawn (``figures``) and filmed (``videos``); and everything is put into templates (``page``). Nothing on
the page is written by hand.
"""

from .page import write_report as write_report
from .results import ReportError as ReportError
from .results import TaskResults as TaskResults
from .results import read_folder as read_folder
from .settings import ReportSettings as ReportSettings
from .verdict import Verdict as Verdict
from .verdict import reach_verdict as reach_verdict
