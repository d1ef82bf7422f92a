"""draft"""

import os
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any
import numpy as np
from . import loops
from .loops import LANES, ROWS
from .simd import WIDTH
from .program import Program

BAND = 256

def n_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1

def aligned(n):
    buffer = np.empty(n + 16, np.float32)
    start = -(buffer.ctypes.data // 4) % 16
    return buffer[start : start + n]

class FusedEngine:
    name = "fused"
    def __init__(self, program: Program, n_threads=None):
        self._program = program
        self._compiled = program.compiled()
        self._n_threads = n_threads or n_cores()
        self._pool = ThreadPoolExecutor(self._n_threads)
        self._local = threading.local()
        c=self._compiled
        self._code=(c.table,c.numbers,(c.row,c.ring),c.result,program.channels)
        self._poly=(loops.RELU,loops.STEP,loops.ERF)
    def _work(self):
        if not hasattr(self._local,'work'):
            self._local.work=aligned(self._compiled.positions*LANES)
            self._local.dev=aligned(self._program.n_deviations*2*LANES)
        return self._local.work,self._local.dev
    def _variances(self,X):
        """X [<=LANES, D] -> images panels, deviations, variances"""
        n=len(X)
        if n<LANES: X=np.concatenate([X,np.repeat(X[-1:],LANES-n,0)])
        images=np.ascontiguousarray(X.reshape(ROWS,WIDTH,-1).transpose(0,2,1))
        work,dev=self._work()
        out=np.empty(LANES,np.float32)
        loops.variances(*self._code,work,images.reshape(-1),dev,out,*self._poly)
        return images,dev,out[:n]
    def diag(self,X):
        return np.concatenate(list(self._pool.map(lambda i:self._variances(X[i:i+LANES])[2],range(0,len(X),LANES))))
    def _rows(self,X):
        def one(i):
            images,dev,v=self._variances(X[i:i+LANES])
            down=np.ascontiguousarray(dev.reshape(ROWS,-1,2,WIDTH//ROWS,ROWS).transpose(0,3,1,4,2)).reshape(LANES//ROWS,-1)
            im=np.ascontiguousarray(images.reshape(ROWS,-1,WIDTH//ROWS,ROWS).transpose(0,2,1,3)).reshape(LANES//ROWS,-1)
            return im,down,v
        parts=list(self._pool.map(one,range(0,len(X),LANES)))
        n=-(-len(X)//ROWS)
        return np.concatenate([p[0] for p in parts])[:n],np.concatenate([p[1] for p in parts])[:n],np.concatenate([p[2] for p in parts])
    def matrix(self,X,X2=None,progress=None):
        sym=X2 is None
        X2=X if sym else X2
        result=np.empty((len(X),len(X2)),np.float32)
        for a in range(0,len(X),BAND):
            rows=X[a:a+BAND]
            images,down,v=self._rows(rows)
            def unit(j):
                columns=X2[j:j+LANES]
                im,dev,_=self._variances(columns)
                work,_=self._work()
                dev=dev.reshape(ROWS,-1)
                for p in range(-(-len(columns)//WIDTH)):
                    lo=j+p*WIDTH
                    nb=len(images) if not sym else min(len(images),max(0,(min(lo+WIDTH,len(X2))-1-a)//ROWS+1))
                    if nb==0: continue
                    out=np.empty((nb*ROWS,WIDTH),np.float32)
                    loops.covariances(*self._code,work,images[:nb],im[p].reshape(-1),down[:nb],dev[p],out,*self._poly)
                    n=min(nb*ROWS,len(rows)); m=min(WIDTH,len(columns)-p*WIDTH)
                    result[a:a+n,lo:lo+m]=out[:n,:m]
                if progress: progress(len(rows)*len(columns))
            list(self._pool.map(unit,range(a//LANES*LANES if sym else 0,len(X2),LANES)))
            if sym:
                ii=np.arange(a,a+len(rows)); result[ii,ii]=v
        if sym:
            lower=np.tril_indices(len(X),-1)
            result[lower]=result.T[lower]
        return result
