"""A kernel in SASS with a loop, a rare path and a guarded store, and what its PTX counted."""

from bench.compiled import sass
from bench.compiled.path import Count

SASS = """
	.section	.text.kernel,"ax",@progbits
.text.kernel:
	//## File "/somewhere/kernels/forward.py", line 10
        /*0000*/                   LDC R1, c[0x0][0x28] ;
        /*0010*/                   S2R R10, SR_TID.X ;
	//## File "/somewhere/kernels/forward.py", line 11 inlined at "/somewhere/else.py", line 99
	//## File "/somewhere/else.py", line 99
        /*0020*/                   ISETP.GE.AND P1, PT, R17, 0x1, PT ;
        /*0030*/              @!P1 BRA `(.L_x_0) ;
        /*0040*/                   CS2R R2, SRZ ;
.L_x_1:
	//## File "/somewhere/kernels/forward.py", line 12
        /*0050*/               @P1 LDG.E.128 R4, desc[UR4][R2.64] ;
	//## File "/somewhere/kernels/forward.py", line 13
        /*0060*/                   MUFU.EX2 R8, R4 ;
        /*0070*/                   FADD R9, R8, R9 ;
	//## File "/somewhere/kernels/forward.py", line 14
        /*0080*/                   SHFL.BFLY PT, R0, R9, 0x10, 0x1f ;
        /*0090*/              @!P1 BRA `(.L_x_1) ;
.L_x_0:
	//## File "/somewhere/kernels/forward.py", line 15
        /*00a0*/               @P0 BRA P2, `(.L_x_3) ;
        /*00b0*/                   MOV R20, 0xd0 ;
        /*00c0*/                   CALL.REL.NOINC `($__internal_0_$__div) ;
.L_x_3:
	//## File "/somewhere/kernels/forward.py", line 16
        /*00d0*/               @P3 BRA `(.L_x_4) ;
        /*00e0*/                   STG.E.64 desc[UR4][R2.64], R6 ;
.L_x_4:
	//## File "/somewhere/kernels/forward.py", line 17
        /*00f0*/              @!P2 STG.E.U16 desc[UR4][R2.64], R6 ;
        /*0100*/                   DADD R6, R8, R10 ;
        /*0110*/                   EXIT ;
$__internal_0_$__div:
        /*0120*/                   FADD R8, R8, 1 ;
        /*0130*/                   RET.REL.NODEC R20 `(kernel) ;
.L_x_5:
        /*0140*/                   BRA `(.L_x_5);
        /*0150*/                   NOP;
"""
PROGRAM = sass.parse(SASS)
FILE = "forward.py"


def counts(trips=3.0, warps=8.0, stores=8.0):
    """What executed the PTX of SASS would have seen."""
    return {
        ("load", (FILE, 12)): [Count(trips * warps, trips * warps, True, trips)],
        ("shuffle", (FILE, 14)): [Count(trips * warps, trips * warps, False, trips)],
        ("store", (FILE, 16)): [Count(warps, stores, True)],
        ("store", (FILE, 17)): [Count(warps, 1.0, True)],
    }
