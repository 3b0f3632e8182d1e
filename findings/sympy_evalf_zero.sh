#!/usr/bin/env bash
# sympy's `evalf` of a small non-zero value can be exactly zero, so it cannot test whether two formulas are equal.
#
# Guess:     sympy raises its working precision until the requested digits are right, so x.evalf(5) is 0 only where x
#            is 0. Graders of mathematics compare (answer - gold).evalf() with 0.
# Versions:  sympy 1.14.0.
# Behaviour: a function's argument is computed no more exactly than the result. log(1 + 10**-15) has five good digits,
#            but evalf(5) gives Zero, without a precision or a warning. evalf(15) gives the digits. acos(1 - 10**-30)
#            behaves alike.
# Output:    log(1 + 1/10**15): evalf(5) is 0, evalf(15) is 9.999999999999995e-16
#            acos(1 - 1/10**30): evalf(5) is 0, evalf(40) is 1.414213562373091e-15
# Fails when the behaviour changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check sympy==1.14.0
"$folder/venv/bin/python" - <<'PYTHON'
from sympy import Rational, S, acos, log

for name, value, digits in (("log(1 + 1/10**15)", log(1 + Rational(1, 10**15)), 15),
                            ("acos(1 - 1/10**30)", acos(1 - Rational(1, 10**30)), 40)):
    rough, fine = value.evalf(5), value.evalf(digits)
    print(f"{name}: evalf(5) is {rough}, evalf({digits}) is {float(fine):.16g}")
    assert rough is S.Zero and fine > 0
PYTHON
