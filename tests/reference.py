"""The paper's algorithms and equations as plain NumPy loops, for comparison with the paper.

As in the paper, functions take a single example: ``X_i`` is a map ``[H W C]`` or a vector ``[C]``.
`for_each_example` and `backward_for_each_example` add the batch. A gate is a tuple ``(w1 [c d],
b1 [d], w2 [d n], b2 [n])``, so that the paper's ``W1 Z`` is ``sum_c w1[c, d] z[c]``. All
arithmetic is in float64.
"""

import itertools

import numpy as np


def for_each_example(algorithm, xs, *weights):
    """The outputs of ``algorithm(X, *weights)`` for a batch of inputs ``xs[i][b]``."""
    examples = [algorithm([x[b] for x in xs], *weights) for b in range(len(xs[0]))]
    return [np.stack(ys) for ys in zip(*examples, strict=True)]


def backward_for_each_example(backward, xs, weights, dys):
    """The gradients of a batch: for the inputs, one per example; for the weights, the sum.

    ``weights[i]`` is a sequence of arrays, or an array, which is used as a sequence of rows; its
    gradient is a list.
    """
    dxs = [np.zeros(x.shape) for x in xs]
    dweights = [[np.zeros(w.shape) for w in weights_i] for weights_i in weights]
    for b in range(len(xs[0])):
        dX, dW = backward([x[b] for x in xs], weights, [dy[b] for dy in dys])
        for i in range(len(xs)):
            dxs[i][b] = dX[i]
            for total, term in zip(dweights[i], dW[i], strict=True):
                total += term
    return dxs, dweights


# --- Section 3 -----------------------------------------------------------------------------------


def global_average_pool(X):
    """Eq. 1; vectors are returned unchanged."""
    if X.ndim == 1:
        return X
    H, W, C = X.shape
    Z = np.zeros(C)
    for c in range(C):
        for a in range(H):
            for b in range(W):
                Z[c] += X[a, b, c]
        Z[c] /= H * W
    return Z


def dense(V, w, bias):
    out = np.zeros(len(bias))
    for k in range(len(bias)):
        for c in range(len(V)):
            out[k] += w[c, k] * V[c]
        out[k] += bias[k]
    return out


def relu(V):
    out = np.zeros(V.shape)
    for at in np.ndindex(V.shape):
        out[at] = max(V[at], 0.0)
    return out


def relevance(Z, w1, b1, w2, b2):
    """Eq. 2, with the biases that the paper's notation omits."""
    return dense(relu(dense(Z, w1, b1)), w2, b2)


def softmax(A):
    """Eq. 3. Subtracting the largest score avoids overflow and does not change the result."""
    n = len(A)
    G = np.zeros(n)
    for j in range(n):
        G[j] = np.exp(A[j] - max(A)) / sum(np.exp(A[k] - max(A)) for k in range(n))
    return G


def gate(X, w1, b1, w2, b2):
    """Eqs. 1-3."""
    return softmax(relevance(global_average_pool(X), w1, b1, w2, b2))


def algorithm_1(X, W, bias, gates):
    """Cross-prediction-based routing.

    ``W[i][j] [c c']`` and ``bias[i][j] [c']`` predict output j from input i by a dense layer, which
    is applied to a map as a 1x1 convolution.
    """
    m, n = len(X), len(W[0])
    U = [[None] * n for _ in range(m)]
    G = [None] * m
    for i in range(m):
        for j in range(n):
            U[i][j] = np.zeros((*X[i].shape[:-1], len(bias[i][j])))
            for pixel in np.ndindex(X[i].shape[:-1]):
                U[i][j][pixel] = dense(X[i][pixel], W[i][j], bias[i][j])
        G[i] = gate(X[i], *gates[i])
    Y = [None] * n
    for j in range(n):
        total = np.zeros(U[0][j].shape)
        for i in range(m):
            total += G[i][j] * U[i][j]
        Y[j] = relu(total)  # Eq. 4
    return Y


# --- Section 4 -----------------------------------------------------------------------------------


def algorithm_2(X, gates):
    """Cross-connection-based routing."""
    G = []
    for X_i, weights in zip(X, gates, strict=True):
        G.append(gate(X_i, *weights))
    return connect(X, G)


def connect(X, G):
    """Eq. 5, the construction of outputs in Algorithm 2, for gates ``G[i][j]``."""
    m, n = len(X), len(G[0])
    Y = []
    for j in range(n):
        Y_j = np.zeros(X[0].shape)
        for i in range(m):
            Y_j += G[i][j] * X[i]
        Y.append(Y_j)
    return Y


def connect_by_matrix(X, G):
    """Eq. 6: the matrix of gates times the vector of the m inputs, for every pixel and channel."""
    m, n = len(X), len(G[0])
    matrix = np.zeros((n, m))
    for i, j in itertools.product(range(m), range(n)):
        matrix[j, i] = G[i][j]
    Y = [np.zeros(X[0].shape) for _ in range(n)]
    for at in np.ndindex(X[0].shape):
        pixels = matrix @ np.array([X[i][at] for i in range(m)])
        for j in range(n):
            Y[j][at] = pixels[j]
    return Y


# --- Section 5 -----------------------------------------------------------------------------------


def linear_cross_connect(X, W):
    """The simplified layer: Eq. 7, then Eqs. 3 and 5. ``W[i]`` is ``[n k]``."""
    return connect(X, [softmax(linear_relevance(X[i], W[i])) for i in range(len(X))])


def linear_relevance(X, W):
    """Eq. 7."""
    n, k = W.shape
    A = np.zeros(n)
    for j in range(n):
        for q in range(k):
            A[j] += W[j, q] * X[q]
    return A


def score_gradient(X_i, G_i, dY):
    """``dL/dA_i``, computed from ``dL/dG_i`` and the Jacobian of the softmax."""
    n = len(dY)
    dG = np.zeros(n)
    for j in range(n):
        dG[j] = np.sum(dY[j] * X_i)
    J = np.zeros((n, n))
    for j in range(n):
        for k in range(n):
            J[j, k] = G_i[j] * (1 - G_i[j]) if j == k else -G_i[j] * G_i[k]
    return J.T @ dG


def direct_gradient(G_i, dY):
    """The first term of Eq. 9."""
    dX = np.zeros(dY[0].shape)
    for j in range(len(dY)):
        dX += G_i[j] * dY[j]
    return dX


def linear_cross_connect_backward(X, W, dY):
    """Eqs. 8 and 9: the gradients of the m inputs ``[k]`` and of their m weights ``[n k]``."""
    dX, dW = [], []
    for X_i, W_i in zip(X, W, strict=True):
        G_i = softmax(linear_relevance(X_i, W_i))
        dA = score_gradient(X_i, G_i, dY)
        dW.append(np.outer(dA, X_i))  # Eq. 8
        dX.append(direct_gradient(G_i, dY) + W_i.T @ dA)  # Eq. 9
    return dX, dW


def cross_connect_backward(X, gates, dY):
    """The gradients of the whole layer: ``dL/dA`` is propagated to Eqs. 2 and 1 instead of Eq. 7.

    Returns the gradients of the m inputs and of their m gates.
    """
    dX, dgates = [], []
    for X_i, (w1, b1, w2, b2) in zip(X, gates, strict=True):
        Z = global_average_pool(X_i)
        H = dense(Z, w1, b1)
        R = relu(H)
        G_i = softmax(dense(R, w2, b2))
        dA = score_gradient(X_i, G_i, dY)
        dR = w2 @ dA
        dH = np.zeros(len(H))
        for k in range(len(H)):
            dH[k] = dR[k] if H[k] > 0 else 0.0
        dZ = w1 @ dH
        dgates.append((np.outer(Z, dH), dH, np.outer(R, dA), dA))

        dX_i = direct_gradient(G_i, dY)
        pixels = list(np.ndindex(X_i.shape[:-1]))  # a vector is a single pixel
        for pixel in pixels:
            dX_i[pixel] += dZ / len(pixels)
        dX.append(dX_i)
    return dX, dgates
