"""The class of a phantom slide in the Bethesda System, by the abnormal cells that lie on it.

Low grade are mild dysplasia and koilocytes, high grade moderate and severe dysplasia and carcinoma in situ; changes
that suggest either but are too few are ASC-US and ASC-H (Nayar & Wilbur, The Bethesda System, 3rd ed. 2015). Phantoms
simplify: a slide has the grade of most of its abnormal cells, and too few is a number. There are no invasive ones.
"""

from collections.abc import Sequence

LOW_GRADE = ("light_dysplastic", "im_Koilocytotic")
ENOUGH = 10  # the System gives no number


def bethesda_class(kinds: Sequence[str]) -> str:
    """The class of a slide with abnormal cells of these kinds, a kind for each cell; as many of either grade are high.

    Dyskeratotic cells count as high: phantoms have them beside severe lesions only.
    """
    if not kinds:
        return "NILM"
    low = 2 * sum(kind in LOW_GRADE for kind in kinds) > len(kinds)
    if len(kinds) < ENOUGH:
        return "ASC-US" if low else "ASC-H"
    return "LSIL" if low else "HSIL"
